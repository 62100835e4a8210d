#!/usr/bin/env bash
# Writes requirements.lock anew from pyproject.toml: exact versions with the hashes of all their files, so for every architecture.
#
# Called by `make lock`. Keeps the versions that are locked already unless a dependency asks otherwise; UPGRADE=1 takes the newest.
# uv resolves; it lives in a scratch environment that is removed again. The lock names no index and no path of this machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON3:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check uv

# uv does not read pip's configuration: hand it the index and the certificates that pip is told to use.
configured() { "$scratch/venv/bin/python" -m pip config get "$1" 2>/dev/null || true; }
index=${PIP_INDEX_URL:-$(configured global.index-url)}
certificates=${PIP_CERT:-$(configured global.cert)}
[[ -z $index ]] || export UV_DEFAULT_INDEX=$index
[[ -z $certificates ]] || export SSL_CERT_FILE=$certificates

cp requirements.lock "$scratch/requirements.lock" 2>/dev/null || true
"$scratch/venv/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra dev \
    --no-annotate --no-header --no-emit-index-url --no-emit-find-links ${UPGRADE:+--upgrade} \
    --output-file "$scratch/requirements.lock" pyproject.toml
mv "$scratch/requirements.lock" requirements.lock
echo "lock: $(grep -c '==' requirements.lock) packages"
