# makerlab's set-up is `make demo` and `make test`; `make help` lists the rest.
SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
CONFIG := settings.ini setup.py constraints.txt
KATEX := 0.16.22
TORCH := 2.13.0
NEW_PIP := pip>=25
REPLAY_PEER := hftbacktest==2.4.4 numpy==2.2.6 numba==0.68.1 llvmlite==0.50.0
BENCH_PEERS := avellaneda-stoikov==0.1.0 hawkesbook==0.1.0 HawkesPyLib==0.3.0
export OMP_NUM_THREADS ?= 1
export PYTHONHASHSEED ?= 0

.PHONY: help peers demo test check nightly mutants audit lab docs docs-preview bench readme notebooks clean
.DEFAULT_GOAL := help

help: ## list what can be made
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | while IFS='	' read -r name text; do printf '  make %-14s%s\n' "$$name" "$$text"; done

$(BIN)/python:
	@python=$$(tools/need.sh demo) && "$$python" -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -U '$(NEW_PIP)'

$(VENV)/.core: $(CONFIG) | $(BIN)/python
	@echo "Installing makerlab into $(VENV): about 240 MB to download, 970 MB on disk."
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(CONFIG) | $(BIN)/python
	@echo "Installing makerlab and all that its tests need into $(VENV): about 710 MB to download, 2700 MB on disk."
	@$(PIP) 'torch==$(TORCH)+cpu' 2>/dev/null || $(PIP) --index-url https://download.pytorch.org/whl/cpu 'torch==$(TORCH)+cpu' 2>/dev/null \
	  || $(PIP) 'torch==$(TORCH)'
	@$(PIP) -e '.[dev]'
	@touch $(VENV)/.core $@

$(VENV)/.katex: | $(BIN)/python
	@if command -v npm >/dev/null 2>&1; then echo "Fetching KaTeX $(KATEX) for the site's formulas (about 1 MB)."; \
	  npm install --silent --no-save --no-package-lock --no-audit --no-fund --prefix . katex@$(KATEX) >/dev/null 2>&1 \
	    || echo "KaTeX could not be fetched: the preview will draw formulas as MathML."; \
	else echo "No npm here: the preview will draw formulas as MathML."; fi
	@touch $@

demo: $(VENV)/.core ## create .venv, install, and run the main job on the embedded sample into reports/
	$(BIN)/mm-engine demo --out reports

.venv-peers/.replay: Makefile
	@python=$$(tools/need.sh test) && { test -x .venv-peers/bin/python || "$$python" -m venv .venv-peers; }
	@echo "Installing hftbacktest, which needs an older numpy, into .venv-peers: about 70 MB to download, 320 MB on disk."
	@{ .venv-peers/bin/python -m pip install -qq --disable-pip-version-check -U '$(NEW_PIP)' && \
	  .venv-peers/bin/python -m pip install -qq --disable-pip-version-check --no-deps $(REPLAY_PEER) && touch $@; } \
	  || echo "hftbacktest could not be installed: the tests that compare with it will be skipped, and will say so."

peers: .venv-peers/.replay ## the engine that replays are held against, in an environment of its own

test: $(VENV)/.dev $(VENV)/.katex .venv-peers/.replay ## install what the tests need, then run everything that CI runs
	@tools/need_r.sh
	@tools/need_live.sh
	@$(BIN)/python tools/check.py

check: ## everything that CI runs, without the installing
	@test -x $(BIN)/nbdev_test || { echo "nothing is installed in $(VENV) yet: make test"; exit 1; }
	@$(BIN)/python tools/check.py

nightly: $(VENV)/.dev .venv-peers/.replay ## what is too slow for every landing: the coverage of every interval that the library prints
	@$(BIN)/python -m pytest -q --slow -m slow tests

mutants: $(VENV)/.dev ## switch each guard of the trading stack off once and see a test fail (minutes)
	@$(BIN)/python tools/mutants.py --quiet

audit: ## known weaknesses of the pinned dependencies; needs the package index itself, not a mirror, and fails where it cannot ask
	@python=$$(tools/need.sh test) && { test -x .venv-audit/bin/pip-audit || { "$$python" -m venv .venv-audit && .venv-audit/bin/python -m pip install -qq --disable-pip-version-check pip-audit==2.10.1; }; }
	@.venv-audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

lab: $(VENV)/.dev ## JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs/index.ipynb

docs: $(VENV)/.dev ## the site with Quarto, in _docs/
	@PATH="$(CURDIR)/$(BIN):$$PATH"; export PATH; \
	command -v quarto >/dev/null 2>&1 || { echo "No quarto on PATH: trying pip install quarto-cli (downloads Quarto, about 120 MB)."; \
	  $(BIN)/python -m pip install -qq --disable-pip-version-check quarto-cli >$(VENV)/quarto.log 2>&1 && quarto --version >/dev/null 2>&1; } || { \
	  echo "Quarto could not be installed (see $(VENV)/quarto.log). Install it from quarto.org, or look at the site offline: make docs-preview"; exit 1; }; \
	$(BIN)/python tools/build_docs.py

docs-preview: $(VENV)/.dev $(VENV)/.katex ## the site without Quarto and without a network, in _docs/
	@$(BIN)/python tools/build_docs.py --preview
	@$(BIN)/python tools/check_links.py _docs
	@echo "Open _docs/index.html"

readme: $(VENV)/.dev ## write README.md from nbs/index.ipynb
	@$(BIN)/python tools/make_readme.py

notebooks: $(VENV)/.dev ## after editing notebooks: export the package, clean, number the studies, write README.md
	@$(BIN)/python tools/tidy.py .

.venv-bench/.peers: $(CONFIG)
	@python=$$(tools/need.sh bench) && { test -x .venv-bench/bin/python || "$$python" -m venv .venv-bench; }
	@echo "Installing makerlab and its peers into .venv-bench: about 290 MB to download."
	@.venv-bench/bin/python -m pip install -qq --disable-pip-version-check -U '$(NEW_PIP)'
	@.venv-bench/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[live]' polars QuantLib ray gymnasium
	@.venv-bench/bin/python -m pip install -qq --disable-pip-version-check --no-deps $(BENCH_PEERS)
	@touch $@

.venv-peers/.matching: .venv-peers/.replay
	@echo "Building orderly-chaos (C++) in .venv-peers."
	@.venv-peers/bin/python -m pip install -qq --disable-pip-version-check orderly-chaos==0.2.0 sortedcontainers==2.4.0
	@touch $@

bench: .venv-bench/.peers .venv-peers/.matching ## makerlab beside its peers, into bench/RESULTS.md
	.venv-bench/bin/python bench/run.py

clean: ## remove what was built (not .venv, not reports)
	rm -rf _docs _proc build .pytest_cache .mypy_cache .ruff_cache .hypothesis
