#!/usr/bin/env bash
# Proves the GPU engines on this machine, stage by stage: builds, numbers, tests, compute-sanitizer, benchmarks.
#
#     scripts/gpu_check.sh [--list] [--only STAGE,STAGE,...] [--limit SECONDS] [--dry-run] [OUT]
#
# From a checkout, without a network. PYTHON names the interpreter (python3), with torch, triton, pytest, pybind11.
# `smoke` answers first whether the engines build, load and give right numbers. On a machine that is lent for minutes,
# three calls hold everything, each in less than 9 minutes:
#
#     scripts/gpu_check.sh --only smoke,sanitizers,bench OUT
#     scripts/gpu_check.sh --only build,tests_cuda,edges_cuda,large OUT
#     scripts/gpu_check.sh --only tests_triton,edges_triton OUT
#
# OUT (gpu-check-<date>) gets a log of each stage, written as it runs, and record.json and summary.txt, written whenever
# a stage ends; a later call with the same OUT and sources adds to the record. Each stage has seconds of its own
# (--list; --limit lowers them): one that needs more is stopped with all that it started, and fails. A failed stage does
# not stop the next. The last line is PASS or FAIL, and so is the exit code.
# --dry-run does what a machine without a GPU can do of each stage, on the CPU: it tries this script, not the engines.
set -uo pipefail
cd "$(dirname "$0")/.."

declare -A seconds=(
    [smoke]=90 [build]=90 [sanitizers]=150 [bench]=255 [tests_cuda]=175 [edges_cuda]=135 [large]=80
    [tests_triton]=275 [edges_triton]=235
)
STAGES=(smoke build sanitizers bench tests_cuda edges_cuda large tests_triton edges_triton)
GRACE=15  # seconds for a last word, such as pytest's report, after SIGINT

list() {
    local name
    for name in "${STAGES[@]}"; do printf '%-13s %4d s\n' "$name" "${seconds[$name]}"; done
}

usage() {
    sed -n '4s/^# *//p' "$0" >&2
    exit 2
}

dry= only= most= out=
while [ $# -gt 0 ]; do
    case $1 in
        --list) list; exit 0 ;;
        --dry-run) dry=1 ;;
        --only) only=${2:-}; shift ;;
        --limit) most=${2:-}; shift ;;
        -*) usage ;;
        *) [ -z "$out" ] || usage; out=$1 ;;
    esac
    shift || usage
done
asked=("${STAGES[@]}")
[ -z "$only" ] || IFS=, read -ra asked <<< "$only"
for name in "${asked[@]}"; do
    [ -n "${seconds[$name]:-}" ] || { echo "no stage is called '$name'; there are ${STAGES[*]}" >&2; exit 2; }
done
out=${out:-gpu-check-$(date +%Y%m%d-%H%M%S)}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
python=${PYTHON:-python3}
work=$(mktemp -d)

export dry out python work
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export TRITON_CACHE_DIR=$work/triton TORCHINDUCTOR_CACHE_DIR=$work/inductor  # compiled here and now
export SKIPPED=77

# --- the stages: each a function in a shell of its own; its output is its log, its last line its summary ---

# Jobs side by side. What they print comes in order, whole, when each is done; at SIGINT what there is of it.
declare -A jobs=()
order=()
begin() {  # name, command
    local name=$1
    shift
    "$@" > "$work/job.$name" 2>&1 &
    jobs[$name]=$!
    order+=("$name")
}
finish() {
    local name status failed=
    for name in "${order[@]}"; do
        wait "${jobs[$name]}"
        status=$?
        printf '\n== %s: exit %s\n' "$name" "$status"
        cat "$work/job.$name"
        rm "$work/job.$name"
        [ "$status" = 0 ] || failed+=" $name"
    done
    order=()
    [ -z "$failed" ] || { echo "failed:$failed"; return 1; }
}
unfinished() {
    local file
    sleep 3
    for file in "$work"/job.*; do
        [ ! -e "$file" ] || { printf '\n== %s: unfinished\n' "${file##*/job.}"; cat "$file"; }
    done
    exit 1
}

describe() {
    nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total,clocks.max.sm,power.limit --format=csv,noheader
    nproc | sed 's/$/ cores/'
    nvcc --version | grep release
    c++ --version | head -n 1
    "$python" -c '
import importlib.metadata as m, sys, torch
print("python", sys.version.split()[0], "torch", torch.__version__, "CUDA", torch.version.cuda)
for name in ("triton", "pybind11", "setuptools", "numpy", "pytest", "pytest-xdist", "hypothesis", "mpmath"):
    try: print(name, m.version(name), end="  ")
    except m.PackageNotFoundError: print(name, "is MISSING", end="  ")
print()'
} 2>&1

build_cpu() {
    VAE_FAST_CUDA=0 VAE_FAST_CPU=1 "$python" setup.py build_ext --inplace
}

build_cuda() {  # for this device alone, if it is not yet done
    local arch key stamp=build/gpu_check.stamp from=$SECONDS
    arch=$("$python" -c 'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))') || return 1
    key="$arch $(find setup.py csrc -type f | LC_ALL=C sort | xargs cat | sha256sum)"
    if [ "$(cat "$stamp" 2> /dev/null)" != "$key" ]; then
        rm -f "$stamp"
        TORCH_CUDA_ARCH_LIST=$arch VAE_FAST_CUDA=1 VAE_FAST_CPU=0 "$python" setup.py build_ext --inplace || return 1
        mkdir -p build && echo "$key" > "$stamp"
    fi
    "$python" -c '
import sys, vae_fast
entry = vae_fast.info()["backends"]["cuda"]
print("cuda:", entry)
sys.exit(not entry["available"])' && echo "the CUDA engine is built for $arch and loads, $((SECONDS - from)) s"
}

build() {
    if [ -n "$dry" ]; then
        VAE_FAST_CPU=0 VAE_FAST_CUDA=0 "$python" setup.py build_ext --build-lib "$work/lib" --build-temp "$work/temp" &&
            echo "dry run: nothing to compile"
        return
    fi
    trap unfinished INT
    begin cpu build_cpu
    begin cuda build_cuda
    finish && echo "both engines are built"
}

smoke() {
    local built=
    trap unfinished INT
    describe
    if [ -n "$dry" ]; then
        TRITON_INTERPRET=1 begin triton "$python" scripts/small_run.py triton --device cpu --cases few --dtypes float32 --shapes 3x7
        begin cpu "$python" scripts/small_run.py cpu --device cpu --each --cases few --dtypes float32 bfloat16 --shapes 3x7
        finish && echo "right numbers"
        return
    fi
    begin triton "$python" scripts/small_run.py triton --each --shapes 33x7 2x20001 --dtypes float32 bfloat16 float16
    if build_cuda > "$work/job.build" 2>&1; then
        built=1
        tail -n 1 "$work/job.build"
        begin cuda "$python" scripts/small_run.py cuda --each
    else
        echo "The CUDA engine is not built. The first errors, then the last lines:"
        grep -n -m 8 -A 4 -E 'error|fatal|Error' "$work/job.build" | cut -c 1-300
        tail -n 10 "$work/job.build" | cut -c 1-300
    fi
    rm "$work/job.build"
    finish || return 1
    [ -n "$built" ] || { echo "Triton is right; the CUDA engine is not built"; return 1; }
    echo "both engines build, load and give right numbers"
}

run_pytest() {  # a run in which every test is skipped proves nothing
    local status
    "$python" -m pytest -q --tb=short --maxfail=40 --durations=5 -o faulthandler_timeout=60 -p no:cacheprovider "$@"
    status=$?
    [ "$status" != 0 ] || grep -q '[0-9] passed' "$log" || { echo "no test ran"; return 1; }
    return "$status"
}

workers() {  # pytest-xdist, where it is installed
    local cores
    cores=$(nproc)
    "$python" -c 'import xdist' 2> /dev/null && echo "-n $((cores < 14 ? cores : 14)) --dist worksteal"
}

engine_tests() {  # file, engine, the part of it that a dry run has time for
    if [ -n "$dry" ]; then
        [ "$2" != triton ] || export TRITON_INTERPRET=1
        VAE_FAST_TEST_DEVICE=cpu run_pytest "tests/$1.py" -k "$3"
    else
        # shellcheck disable=SC2046
        VAE_FAST_TEST_ENGINES=$2 run_pytest $(workers) "tests/$1.py"
    fi
}

tests_cuda() { engine_tests test_gpu cuda "generators or autocast or bit_identical"; }
tests_triton() { engine_tests test_gpu triton "generators"; }
edges_cuda() { engine_tests test_gpu_edges cuda "test_counts or (classes and 10)"; }
edges_triton() { engine_tests test_gpu_edges triton "what_counts_as_none and 9.9e-09"; }

large() {
    if [ -n "$dry" ]; then
        "$python" -m pytest -q -p no:cacheprovider --collect-only tests/test_gpu_large.py
    else
        run_pytest tests/test_gpu_large.py
    fi
}

find_sanitizer() {
    command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2> /dev/null
}

# In all 54 launches of 38 Triton kernels (counted), and as many of the CUDA engine's in two dtypes. Every tensor is an
# allocation of its own: its ends are seen, and whether it has been written. torch asks the driver for functions that it
# may not have; a failed launch of ours fails small_run.py.
SMALL="--cases few --shapes 33x7 2x20001 --dtypes float32"

sanitizers() {
    local engines=triton engine sanitizer tool status
    local -A dtypes=([cuda]=bfloat16 [triton]=)
    trap unfinished INT
    if [ -n "$dry" ]; then
        # shellcheck disable=SC2086
        "$python" scripts/small_run.py cpu --device cpu $SMALL --shapes 3x7
        return
    fi
    "$python" -c 'import sys, vae_fast.backends as b; sys.exit(b.unavailable_reason("cuda") is not None)' &&
        engines="cuda triton"
    for engine in $engines; do  # as it is, which also fills Triton's cache
        # shellcheck disable=SC2086
        begin "$engine" "$python" scripts/small_run.py "$engine" $SMALL ${dtypes[$engine]}
    done
    finish || return 1
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
    export PYTORCH_NO_CUDA_MEMORY_CACHING=1
    for tool in memcheck racecheck initcheck synccheck; do
        for engine in $engines; do
            # shellcheck disable=SC2086
            begin "$tool-$engine" "$sanitizer" --tool "$tool" --error-exitcode 9 --print-limit 20 \
                $([ "$tool" != memcheck ] || echo "--report-api-errors no") \
                "$python" scripts/small_run.py "$engine" $SMALL ${dtypes[$engine]}
        done
    done
    finish && echo "memcheck, racecheck, initcheck, synccheck: no errors ($engines; a planted one was found)"
}

bench() {
    local options=(--budget "$((limit - 30))")
    [ -z "$dry" ] || options=(--quick --device cpu)
    "$python" -m benchmarks.bench_gpu --out "$out/rows.json" "${options[@]}"
}

# --- running them ---

running=
stop_all() {  # SIGKILL for the process group of the stage, and for what has left it: all carry the stage's name
    local left _
    [ -n "$running" ] || return 0
    kill -KILL -- "-$pid" 2> /dev/null
    for _ in {1..50}; do  # until they are gone, which takes a busy machine a moment
        left=$(grep -lszxF "GPU_CHECK_STAGE=$running" /proc/[0-9]*/environ 2> /dev/null | cut -d / -f 3)
        [ -n "$left" ] || break
        xargs kill -KILL <<< "$left" 2> /dev/null
        sleep 0.1
    done
    running=
}
is_running() { kill -0 "$pid" 2> /dev/null; }
trap 'stop_all; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM HUP

record() {
    timeout 90 "$python" -m benchmarks.gpu_record "$out" --stages "$work/stages.tsv" --facts "$work/facts.json" \
        --asked "${asked[*]}" ${dry:+--dry-run}
}

stage() {
    local name=$1 from=$SECONDS status result note stopped=
    limit=${seconds[$name]} log=$out/$name.log
    [ -z "$dry" ] || limit=3600  # for a hang: a dry run has no schedule
    [ -z "$most" ] || [ "$most" -gt "$limit" ] || limit=$most
    export limit log STAGE_ENDS=$(($(date +%s) + limit))
    running="$$-$name"
    set -m  # a process group of its own, in which SIGINT is not ignored (env: where the script's own is)
    GPU_CHECK_STAGE=$running env --default-signal=INT bash -c "set -uo pipefail; declare -A jobs=(); order=(); $name" > "$log" 2>&1 < /dev/null &
    pid=$!
    set +m
    while is_running && [ $((SECONDS - from)) -lt "$limit" ]; do sleep 0.1; done
    if is_running; then
        stopped=1
        kill -INT -- "-$pid"
        while is_running && [ $((SECONDS - from)) -lt $((limit + GRACE)) ]; do sleep 0.1; done
    fi
    stop_all
    wait "$pid" 2> /dev/null
    status=$?
    [ -z "$stopped" ] || status=124
    case $status in
        0) result=pass ;;
        "$SKIPPED") result=skip ;;
        *) result=fail ;;
    esac
    note=$(grep -av '^[[:space:]]*$' "$log" | tail -n 1 | tr -d '\t' | cut -c 1-200)
    [ -z "$stopped" ] || note="stopped after $limit s; $note"
    printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$name" "$result" "$((SECONDS - from))" "$status" "$(date -u +%FT%TZ)" "$note" >> "$work/stages.tsv"
    if [ "$name" = smoke ] || [ "$result" = fail ]; then  # for a reader who has this output and nothing else
        tail -c 8000 "$log" | cut -c 1-400
    fi
    printf '%-13s %-5s %4d s  %s\n' "$name" "$result" "$((SECONDS - from))" "$note"
    [ "$name" != smoke ] && [ "$name" != build ] || rm -f "$work/facts.json"  # there may be an engine more
    record > "$work/record.log" 2>&1
    [ ! "$out/record.json" -nt "$out/rows.json" ] || rm -f "$out/rows.json"  # it is in the record
    if [ "$(stat -c %s "$log")" -gt 8000000 ]; then
        tail -c 8000000 "$log" > "$work/tail" && mv "$work/tail" "$log"
    fi
}
export -f begin finish unfinished describe build_cpu build_cuda build smoke run_pytest workers engine_tests
export -f tests_cuda tests_triton edges_cuda edges_triton large find_sanitizer sanitizers bench
export SMALL

if [ -z "$dry" ] && ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    nvidia-smi >&2
    echo "torch finds no CUDA device here; $0 --dry-run tries what does not need one" >&2
    echo FAIL
    exit 1
fi
for name in "${asked[@]}"; do stage "$name"; done
cat "$work/record.log"
case $(tail -n 1 "$work/record.log") in
    PASS*) ;;
    FAIL*) exit 1 ;;
    *) echo "FAIL (no record)"; exit 1 ;;
esac
