#!/usr/bin/env bash
# Makes .venv from requirements.lock (exact versions, hashes checked) and installs the project into it, editable.
#
# Called by `make venv`, on which every other target depends. Touches .venv only. Says nothing and asks no network when .venv is
# up to date; may be interrupted and run again, and run twice at the same time. PYTHON3 names another interpreter (3.11 or later).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python3=${PYTHON3:-python3}
venv=$PWD/.venv
stamp=$venv/.made-from
unfinished=$venv/.unfinished
log=$venv/install.log

fail() { # what, remedy
    printf 'error: cannot make .venv: %s\nhint:  %s\n' "$1" "$2" >&2
    exit 1
}

# One at a time, on a lock that pip inherits: if this script is killed, the next one waits for the pip that is left of it.
exec 9<deploy/setup/make-venv.sh
if ! flock --nonblock 9; then
    echo 'venv: waiting for another make that is making .venv' >&2
    flock 9
fi

wanted=$(sha256sum requirements.lock pyproject.toml deploy/setup/make-venv.sh && echo "$venv")
runs() { "$venv/bin/python" -c "import sys, $1; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; }
if [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && runs pip; then
    exit 0
fi

unset PYTHONHOME PYTHONPATH

# Another place's scripts name another interpreter, and an interrupted installation may lack any file: start from nothing then.
if [[ -e $unfinished ]] || ! runs pip || ! grep -qsF "$venv/bin/python" "$venv/bin/pip"; then
    command -v "$python3" >/dev/null ||
        fail "there is no $python3" 'apt-get install -y python3 python3-venv'
    "$python3" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$python3" --version) is too old" 'Python 3.11 or later is needed: make PYTHON3=/path/to/python3.11 ...'
    "$python3" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python3 has no venv module" 'apt-get install -y python3-venv'
    echo "venv: making .venv with $("$python3" --version)"
    mkdir -p "$venv"
    touch "$unfinished"
    "$python3" -m venv --clear "$venv" || fail 'python3 -m venv failed' 'see the message above; is the disk full?'
fi

rm -f "$stamp"
touch "$unfinished"
echo "venv: installing $(grep -c '==' requirements.lock) packages from requirements.lock"

# Of pip's configuration, in files and PIP_..., only that counts by which this machine reaches its package index. The rest could send
# the packages elsewhere (user, target, prefix) or argue with the lock (constraint).
kept='index-url extra-index-url trusted-host find-links no-index cert client-cert proxy timeout default-timeout retries
    cache-dir no-cache-dir keyring-provider use-feature only-binary no-binary'
configured=$("$venv/bin/python" -m pip config list 2>/dev/null | "$venv/bin/python" -c '
import ast, re, shlex, sys
kept, weights, found = sys.argv[1].split(), ["global", "install", ":env:"], {}
for line in sys.stdin:
    match = re.match(r"([a-z:]+)\.([a-z-]+)=(.*)$", line)
    if match and match[1] in weights and match[2] in kept:
        found[weights.index(match[1]), match[2]] = ast.literal_eval(match[3])
for (_, name), value in sorted(found.items()):
    variable = "PIP_" + name.upper().replace("-", "_")
    print(f"export {variable}={shlex.quote(value)}")
' "$kept")
while IFS= read -r name; do unset "$name"; done < <(compgen -e PIP_)
eval "$configured"
export PIP_CONFIG_FILE=/dev/null PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# No compiler is expected: wheels only, unless the configuration asks for something else.
[[ -n ${PIP_NO_BINARY:-} ]] || export PIP_ONLY_BINARY=${PIP_ONLY_BINARY:-:all:}

{
    "$venv/bin/python" -m pip install --quiet --require-hashes --requirement requirements.lock &&
        "$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation --editable .
} >"$log" 2>&1 </dev/null || {
    tail -n 15 "$log" >&2
    fail 'pip failed (its last words are above, the rest is in .venv/install.log)' \
        'is the package index reachable (python3 -m pip config list; HTTPS_PROXY, PIP_INDEX_URL)? Then run the same command again'
}
rm -f "$unfinished"
printf '%s\n' "$wanted" >"$stamp"
echo 'venv: ready'
