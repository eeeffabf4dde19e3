#!/usr/bin/env bash
# Runs the tests with another Python and JAX than those that tools/install.sh pins: the newest of all else that
# pyproject.toml allows, without vLLM and PyTorch (tests that need them are skipped). Needs uv (in .venv).
#
#   tools/versions.sh PYTHON JAX [pytest's arguments]
#   tools/versions.sh python3.13 0.12.0 tests/learner_jax
#
# The environment is made in a folder that is removed at the end; KEEP=FOLDER keeps it there for the next time.
set -euo pipefail
cd "$(dirname "$0")/.."

if (($# < 2)); then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
python=$1 jax=$2
shift 2
uv=${UV:-.venv/bin/uv}

if [ -n "${KEEP:-}" ]; then
    folder=$KEEP
else
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
if [ ! -e "$folder/installed" ]; then
    mkdir -p "$folder"
    printf 'jax==%s\njaxlib==%s\n' "$jax" "$jax" >"$folder/jax.txt"
    "$uv" venv --quiet --clear --python "$python" "$folder/venv"
    "$uv" pip install --quiet --system-certs --python "$folder/venv/bin/python" --override "$folder/jax.txt" \
        --editable '.[cpu,dev]'
    touch "$folder/installed"
fi
"$folder/venv/bin/python" - <<'CODE'
import platform
from importlib.metadata import version
names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorstore", "numpy", "transformers")
print("Python", platform.python_version(), *(f"{name} {version(name)}" for name in names), sep=", ")
CODE
"$folder/venv/bin/python" -m pytest "$@"
