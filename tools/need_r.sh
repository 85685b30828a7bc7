#!/bin/sh
# The R tests write genuine R files with R itself. Install R when that can be done, else say what is missing; never fail.
has_r() { Rscript -e 'library(xts); library(data.table)' >/dev/null 2>&1; }
log=${TMPDIR:-/tmp}/makerlab-apt.log
want="r-base-core r-cran-xts r-cran-data.table"
if has_r; then
    echo "R with xts and data.table: there."
elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "R with xts and data.table: installing $want (about 60 MB to download)."
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $want; } >$log 2>&1 \
        || echo "R could not be installed (see $log): the tests that need R will be skipped, and will say so."
else
    echo "R with xts and data.table: MISSING. The tests that need R will be skipped, and will say so."
    echo "  Debian or Ubuntu: sudo apt-get install $want    macOS: install R, then install.packages(c('xts', 'data.table'))"
fi
