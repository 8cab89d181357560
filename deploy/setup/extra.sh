#!/bin/sh
# Install what one extra of pyproject.toml lists into .venv, without building swapfs again.
# Arguments: the extra, and a stamp file that is touched when all is there.
set -eu
extra=$1 stamp=$2

wanted=$(.venv/bin/python -c '
import sys, tomllib
with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["project"]["optional-dependencies"][sys.argv[1]])' "$extra")
log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "setup: installing $wanted"
# shellcheck disable=SC2086 # the list is meant to split; no requirement has a blank in it
if ! .venv/bin/python -m pip install --disable-pip-version-check $wanted >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    echo "setup: pip could not install $wanted" >&2
    exit 1
fi
touch "$stamp"
