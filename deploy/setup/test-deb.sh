#!/bin/sh
# Run tests against the newest package in a folder and against the libraries of the distribution: only pytest and what
# goes with it are from PyPI. Arguments: the folder, and the tests.
set -eu
dist=$1
shift

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
deb=$(ls -t "$dist"/swapfs_*.deb | head -n 1)
dpkg -x "$deb" "$work/package"
# The package's Python files and extensions, in a checkout: tests need the C sources and deploy/ too.
mkdir "$work/checkout"
cp -r ./*.md LICENSE Makefile deploy docs pyproject.toml swapfs tests "$work/checkout"
find "$work/checkout/swapfs" -name '*.so' -delete
cp -r "$work"/package/usr/lib/python3/dist-packages/swapfs "$work/checkout"

/usr/bin/python3 -m venv --system-site-packages "$work/venv"
wanted=$(/usr/bin/python3 -c '
import tomllib
with open("pyproject.toml", "rb") as file:
    for wanted in tomllib.load(file)["project"]["optional-dependencies"]["dev"]:
        if wanted.startswith(("pytest", "hypothesis")):
            print(wanted)')
# shellcheck disable=SC2086 # the list is meant to split
"$work/venv/bin/pip" install --quiet --disable-pip-version-check $wanted
# A daemon looks in no working directory.
echo "$work/checkout" >"$(echo "$work"/venv/lib/python3*/site-packages)/swapfs.pth"
cd "$work/checkout"
echo "test-deb: $deb with $("$work/venv/bin/python" -c '
from importlib.metadata import version
for name in "pyfuse3 trio lz4 prometheus_client click".split():
    print(name, version(name), end="  ")')"
"$work/venv/bin/python" -m pytest -q "$@"
