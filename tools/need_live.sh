#!/bin/sh
# The servers that some tests of the live wing start: Redis, which keeps a copy for dashboards, and Prometheus, which watches.
# Called by `make test`; nothing here ever fails, and the tests that need them skip loudly where they are missing.
has_live() { command -v redis-server >/dev/null 2>&1 && command -v prometheus >/dev/null 2>&1 && command -v promtool >/dev/null 2>&1; }
log=${TMPDIR:-/tmp}/makerlab-live-apt.log
want="redis-server prometheus"
if has_live; then
    echo "redis-server, prometheus and promtool: there."
elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "redis-server and prometheus: installing $want (about 40 MB to download); neither is started."
    # the packages would start their services on fixed ports: a policy of our own says no while they are installed
    policy=/usr/sbin/policy-rc.d
    ours=
    if [ ! -e $policy ] && { printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy; } 2>/dev/null; then ours=yes; fi
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $want; } >$log 2>&1 \
        || echo "redis-server or prometheus could not be installed (see $log): the tests that need them will be skipped, and will say so."
    [ -z "$ours" ] || rm -f $policy
    has_live || echo "Not all of redis-server, prometheus, promtool are there: tests will be skipped, and will say so (see $log)."
else
    echo "redis-server, prometheus, promtool: MISSING. The tests that need them will be skipped, and will say so."
    echo "  Debian or Ubuntu: sudo apt-get install $want    macOS: brew install redis prometheus"
fi
