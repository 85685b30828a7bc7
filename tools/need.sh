#!/bin/sh
# Say, before anything is installed, what this machine lacks. Prints the python to use; called by the Makefile.
fail() { printf '\nmakerlab cannot be set up yet: %s\n' "$1" >&2; exit 1; }
found=
for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if command -v "$name" >/dev/null 2>&1 && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        found=$name
        break
    fi
done
[ -n "$found" ] || fail "Python 3.11 or newer is needed, found $(python3 --version 2>/dev/null || echo none).
  Debian 12, Ubuntu 24.04 or newer: apt-get install python3 python3-venv
  elsewhere: install a newer Python and say which: make $1 PYTHON=python3.12"
"$found" -c 'import venv, ensurepip' 2>/dev/null || fail "$found has no venv with pip.
  Debian or Ubuntu: apt-get install python3-venv"
command -v git >/dev/null 2>&1 || fail "git is needed (reports name the commit that made them).
  Debian or Ubuntu: apt-get install git"
echo "$found"
