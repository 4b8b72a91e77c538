#!/usr/bin/env bash
# Proves the GPU engines on this machine: builds, tests, compute-sanitizer, benchmarks, and a dated record of it all.
#
#     scripts/gpu_check.sh [--dry-run] [OUT]        PYTHON names the interpreter (python3), with torch, triton, pytest
#
# From a checkout, without a network, in less than 9 minutes. OUT (gpu-check-<date>) gets record.json, summary.txt and
# a log of each stage. A failed stage does not stop the next. The last line is PASS or FAIL, and so is the exit code.
# --dry-run does what a machine without a GPU can do of each stage, on the CPU: it tries this script, not the engines.
set -uo pipefail
cd "$(dirname "$0")/.."

dry=
[ "${1:-}" = --dry-run ] && { dry=1; shift; }
out=${1:-gpu-check-$(date +%Y%m%d-%H%M%S)}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
total=525    # seconds, for everything
reserve=130  # of them, for the benchmarks

export dry out python work
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export TRITON_CACHE_DIR=$work/triton TORCHINDUCTOR_CACHE_DIR=$work/inductor  # compiled here and now
SKIPPED=77
export SKIPPED

# --- the stages: each a function in a shell of its own; its output is its log, its last line its summary ---

build() {
    if [ -n "$dry" ]; then
        VAE_FAST_CPU=0 VAE_FAST_CUDA=0 "$python" setup.py build_ext --build-lib "$work/lib" --build-temp "$work/temp" &&
            echo "dry run: nothing to compile"
        return
    fi
    "$python" -c 'import pybind11' || {
        echo "pybind11 is not installed: no CUDA engine, Triton alone is checked"
        return 1
    }
    local arch
    arch=$("$python" -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))') || return 1
    TORCH_CUDA_ARCH_LIST=$arch VAE_FAST_CUDA=1 "$python" setup.py build_ext --inplace || return 1
    "$python" -c '
import sys, vae_fast
info = vae_fast.info()
print(info)
print("built:", ", ".join(name for name, entry in info["backends"].items() if entry["available"]))
sys.exit(not info["backends"]["cuda"]["available"])'
}

run_pytest() {  # a run in which every test is skipped proves nothing
    local status
    "$python" -m pytest -q --tb=short --maxfail=40 -p no:cacheprovider "$@" | tee "$work/pytest.log"
    status=${PIPESTATUS[0]}
    grep -q '[0-9] passed' "$work/pytest.log" || { [ "$status" != 0 ] || echo "no test ran"; return 1; }
    return "$status"
}

workers() {  # pytest-xdist, where it is installed
    local cores
    cores=$(nproc)
    "$python" -c 'import xdist' 2> /dev/null && echo "-n $((cores < 14 ? cores : 14))"
}

tests_cuda() {
    if [ -n "$dry" ]; then
        VAE_FAST_TEST_DEVICE=cpu run_pytest tests/test_gpu.py -k "generators or autocast or bit_identical"
    else
        # shellcheck disable=SC2046
        VAE_FAST_TEST_ENGINES=cuda run_pytest $(workers) tests/test_gpu.py
    fi
}

tests_triton() {
    if [ -n "$dry" ]; then
        TRITON_INTERPRET=1 VAE_FAST_TEST_DEVICE=cpu run_pytest tests/test_gpu.py -k "generators"
    else
        # shellcheck disable=SC2046
        VAE_FAST_TEST_ENGINES=triton run_pytest $(workers) tests/test_gpu.py
    fi
}

tests_large() {
    if [ -n "$dry" ]; then
        "$python" -m pytest -q -p no:cacheprovider --collect-only tests/test_gpu_large.py
    else
        run_pytest tests/test_gpu_large.py
    fi
}

find_sanitizer() {
    command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2> /dev/null
}

sanitizers() {
    if [ -n "$dry" ]; then
        TRITON_INTERPRET=1 "$python" scripts/small_run.py --device cpu triton
        return
    fi
    local engines=triton sanitizer tool status failed=
    "$python" -c 'import sys, vae_fast.backends as b; sys.exit(b.unavailable_reason("cuda") is not None)' &&
        engines="cuda triton"
    # shellcheck disable=SC2086
    "$python" scripts/small_run.py $engines || return 1  # as it is, which also fills Triton's cache
    sanitizer=$(find_sanitizer) || { echo "compute-sanitizer was not found"; return "$SKIPPED"; }

    # A checker that finds nothing has to find what is planted.
    echo '__global__ void f(int* p) { p[1 << 20] = 1; }
          int main() { int* p; cudaMalloc(&p, 4); f<<<1, 1>>>(p); return cudaDeviceSynchronize() ? 3 : 0; }' > "$work/planted.cu"
    if "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" -arch=native -o "$work/planted" "$work/planted.cu" ||
        nvcc -arch=native -o "$work/planted" "$work/planted.cu"; then
        "$sanitizer" --tool memcheck --error-exitcode 9 "$work/planted" > "$work/planted.log" 2>&1
        status=$?
        if grep -qi 'not supported' "$work/planted.log"; then
            cat "$work/planted.log"
            echo "compute-sanitizer does not support this machine"
            return "$SKIPPED"
        fi
        [ "$status" = 9 ] || { cat "$work/planted.log"; echo "memcheck did not find a planted error"; return 1; }
    fi

    local -A jobs
    local -a options
    for tool in memcheck racecheck initcheck synccheck; do
        # Every tensor an allocation of its own: its ends are seen, and whether it has been written.
        options=(--tool "$tool" --error-exitcode 9)
        # torch asks the driver for functions that it may not have; a failed launch of ours fails small_run.py
        [ "$tool" != memcheck ] || options+=(--report-api-errors no)
        # shellcheck disable=SC2086
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" "${options[@]}" "$python" scripts/small_run.py $engines \
            > "$work/$tool.log" 2>&1 &
        jobs[$tool]=$!
    done
    for tool in memcheck racecheck initcheck synccheck; do
        wait "${jobs[$tool]}"
        status=$?
        printf '\n== %s: exit %s\n' "$tool" "$status"
        head -c 2000000 "$work/$tool.log"
        [ "$status" = 0 ] || failed+=" $tool"
    done
    [ -z "$failed" ] || { echo "failed:$failed"; return 1; }
    echo "memcheck, racecheck, initcheck, synccheck: no errors ($engines; a planted one was found)"
}

bench() {
    local options=(--budget "$((limit - 40))")
    [ -z "$dry" ] || options=(--quick --device cpu)
    "$python" -m benchmarks.bench_gpu --out "$work/rows.json" "${options[@]}"
}

# --- running them ---

stage() {  # name, seconds, seconds that later stages are to have
    local name=$1 from=$SECONDS status result note
    limit=$((total - SECONDS - $3))
    [ "$limit" -lt "$2" ] || limit=$2
    [ -z "$dry" ] || limit=3600  # for a hang: a dry run has no schedule
    export limit
    if [ "$limit" -lt 20 ]; then
        status=124
        echo "no time was left" > "$out/$name.log"
    else
        timeout --signal=INT --kill-after=10 "$limit" bash -c "set -uo pipefail; $name" > "$work/stage.log" 2>&1 < /dev/null
        status=$?
        tail -c 8000000 "$work/stage.log" > "$out/$name.log"
    fi
    case $status in
        0) result=pass ;;
        "$SKIPPED") result=skip ;;
        *) result=fail ;;
    esac
    note=$(grep -v '^[[:space:]]*$' "$out/$name.log" | tail -n 1 | tr -d '\t' | cut -c 1-200)
    [ "$status" != 124 ] && [ "$status" != 137 ] || note="stopped after $limit s; $note"
    printf '%s\t%s\t%s\t%s\t%s\n' "$name" "$result" "$((SECONDS - from))" "$status" "$note" >> "$work/stages.tsv"
    printf '%-13s %-5s %4d s  %s\n' "$name" "$result" "$((SECONDS - from))" "$note"
}
export -f build run_pytest workers tests_cuda tests_triton tests_large find_sanitizer sanitizers bench

if [ -z "$dry" ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "torch finds no CUDA device here; $0 --dry-run tries what does not need one" >&2
    echo FAIL
    exit 1
fi
stage build 130 "$reserve"
stage tests_cuda 90 "$reserve"
stage tests_triton 170 "$reserve"
stage tests_large 50 "$reserve"
stage sanitizers 95 "$reserve"
stage bench 240 10

"$python" -m benchmarks.gpu_record "$out" --stages "$work/stages.tsv" --rows "$work/rows.json" ${dry:+--dry-run}
