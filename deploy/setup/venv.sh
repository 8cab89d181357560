#!/bin/sh
# Make .venv with swapfs (editable) and everything its tests need; the argument names a stamp
# file that is touched when all is there.
set -eu
stamp=$1

# Debian's own Python, so that the wheels fit the VM's.
python=/usr/bin/python3
[ -x "$python" ] || python=python3
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup: $("$python" -V) is too old; swapfs needs Python 3.11 or later (Debian 12)" >&2
    exit 1
}
if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c pass 2>/dev/null; then
    echo "setup: making .venv with $("$python" -V)"
    rm -rf .venv
    "$python" -m venv .venv
fi
echo "setup: building swapfs and installing what it needs (about a minute the first time)"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! .venv/bin/python -m pip install --disable-pip-version-check -e '.[dev]' >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    echo "setup: pip could not install swapfs" >&2
    exit 1
fi
touch "$stamp"
