"The embedded sample is what its seed makes; public files are checked, and a wrong one leaves nothing behind."
import functools
import hashlib
import http.server
import json
import threading

import pandas as pd
import pyreadr
import pytest
from conftest import ROOT, real

from makerlab.core import DataError, ParameterError
from makerlab.data import samples
from makerlab.data.samples import SAMPLE_DATES, SAMPLE_SPECS, fetch, load_sample, make_sample, registry, sample_dir, sample_truth

COMMITTED = ROOT / "data" / "sample"
PLACES = {"highfrequency": "highfrequency_rda/data", "jetblack": "lobster_samples", "OrderBook_HLS": "lobster_aapl_l10_head",
          "hftbacktest": "hftbacktest_binance", "obAnalytics": "obanalytics_bitstamp_l3", "cran/orderbook": "orderbook_cran_l3"}


def test_seed_makes_the_committed_files(tmp_path):
    made = make_sample(tmp_path / "again")
    assert sorted(p.name for p in made.iterdir()) == sorted(p.name for p in COMMITTED.iterdir() if p.name != "README.md")
    for path in sorted(made.iterdir()):
        other = COMMITTED / path.name
        if path.suffix == ".parquet":
            pd.testing.assert_frame_equal(pd.read_parquet(path), pd.read_parquet(other), check_exact=True)
        elif path.suffix == ".rda":
            one, two = pyreadr.read_r(str(path)), pyreadr.read_r(str(other))
            assert list(one) == list(two) == (["trades"] if "trades" in path.name else ["nbbo"])
            for name in one:
                pd.testing.assert_frame_equal(one[name], two[name], check_exact=True)
        else:
            assert json.loads(path.read_text()) == json.loads(other.read_text())
    assert not [p for p in tmp_path.iterdir() if p.name != "again"]


def test_size_and_columns():
    assert sum(p.stat().st_size for p in COMMITTED.iterdir()) < 5_000_000
    nbbo = pyreadr.read_r(str(COMMITTED / "2026-03-02.rda"))["nbbo"]
    assert list(nbbo.columns) == ["date", "time_m", "sym_root", "best_bid", "best_bidsiz", "best_ask", "best_asksiz"]
    assert nbbo["time_m"].between(34_200, 57_600).all() and set(nbbo["sym_root"]) == set(SAMPLE_SPECS)
    trades = pyreadr.read_r(str(COMMITTED / "2026-03-02.trades.rda"))["trades"]
    assert list(trades.columns) == ["date", "time_m", "sym_root", "price", "size"]


def test_tick_regimes_and_truth():
    q, t = load_sample("BIGT")
    assert ((q["ask"] - q["bid"]).round(2) == 0.01).mean() > 0.9 and set(t["side"]) == {1, -1}
    q, _ = load_sample("SMLT")
    assert (q["ask"] - q["bid"]).round(2).between(0.05, 0.10).all()
    assert sample_truth("SMLT")["A"] == SAMPLE_SPECS["SMLT"]["A"]
    days = [load_sample("BIGT", day=d)[0] for d in SAMPLE_DATES]
    assert sum(map(len, days)) == len(load_sample("BIGT")[0]) and days[1].equals(load_sample("BIGT", day=1)[0])


@pytest.mark.parametrize("call", [lambda: load_sample("XXX"), lambda: load_sample("BIGT", day=3), lambda: load_sample("BIGT", day="2026-03-08"),
                                  lambda: sample_truth("XXX"), lambda: fetch("nothing", folder=".")])
def test_bad_requests(call):
    with pytest.raises(ParameterError):
        call()


def test_without_the_repository_it_is_built_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MAKERLAB_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(samples.makerlab, "__file__", str(tmp_path / "site-packages" / "makerlab" / "__init__.py"))
    built = sample_dir()
    assert built.is_relative_to(tmp_path)
    stamp = (built / "truth.json").stat().st_mtime_ns
    assert sample_dir() == built and (built / "truth.json").stat().st_mtime_ns == stamp
    assert len(load_sample("SMLT", day=0)[0]) == 16_439


def test_registry_matches_the_real_files():
    known = registry()
    assert {"name", "url", "sha256", "licence", "bytes"} == set(known.columns) and known["name"].is_unique
    for row in known.itertuples():
        data = real(f"{next(v for k, v in PLACES.items() if k in row.url)}/{row.name}").read_bytes()
        assert len(data) == row.bytes and hashlib.sha256(data).hexdigest() == row.sha256, row.name


@pytest.fixture
def server(tmp_path, monkeypatch):
    "A local mirror: the registry's paths, to be filled by a test."
    web = tmp_path / "web"
    web.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=web))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", web
    httpd.shutdown()
    httpd.server_close()


def serve(web, name, data):
    url = registry().set_index("name").loc[name, "url"]
    path = web / url.split("//", 1)[1].split("/", 1)[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.mark.realdata
def test_all_public_files_are_fetched(server, tmp_path):
    base, web = server
    for row in registry().itertuples():
        serve(web, row.name, real(f"{next(v for k, v in PLACES.items() if k in row.url)}/{row.name}").read_bytes())
        said: list[str] = []
        path = fetch(row.name, folder=tmp_path / "got", base=base, notify=said.append)
        assert path == tmp_path / "got" / row.name and path.stat().st_size == row.bytes
        assert row.licence in said[0]


def test_environment_names_the_mirror(server, tmp_path, monkeypatch):
    base, _ = server
    monkeypatch.setenv("MAKERLAB_DATA_BASE", base + "/")
    with pytest.raises(DataError, match="404"):
        fetch("sample.txt", folder=tmp_path / "got", notify=lambda text: None)


@pytest.mark.parametrize("exists", [False, True])
def test_wrong_hash_is_refused_and_nothing_left(server, tmp_path, exists):
    base, web = server
    serve(web, "sampleTData.rda", b"forged")
    folder = tmp_path / "got"
    if exists:
        folder.mkdir()
        (folder / "mine.txt").write_text("keep")
    said: list[str] = []
    with pytest.raises(DataError, match="SHA-256"):
        fetch("sampleTData.rda", folder=folder, base=base, notify=said.append)
    assert "GPL" in said[0]  # shown before the download
    assert [p.name for p in folder.iterdir()] == ["mine.txt"] if exists else not folder.exists()


def test_an_unreachable_server_is_an_error_in_words(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(DataError, match="nothing was kept"):
        fetch("sample.txt", folder=tmp_path / "got", base="http://127.0.0.1:9", notify=lambda text: None, timeout_s=2)
    assert not (tmp_path / "got").exists()
