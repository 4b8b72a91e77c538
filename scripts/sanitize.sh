#!/usr/bin/env bash
# Builds the CPU engine with AddressSanitizer and UndefinedBehaviorSanitizer, in a copy, and runs the kernels' tests on it.
#
#     scripts/sanitize.sh [pytest's arguments]          PYTHON names the interpreter (.venv/bin/python)
set -euo pipefail
cd "$(dirname "$0")/.."

python=$(realpath -s "${PYTHON:-.venv/bin/python}")
compiler=${CXX:-c++}
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r csrc tests vae_fast pyproject.toml setup.py README.md LICENSE "$copy"
cd "$copy"
find vae_fast -name '*.so' -delete

CXXFLAGS="-g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined" \
    VAE_FAST_CPU=1 VAE_FAST_CUDA=0 "$python" setup.py --quiet build_ext --inplace

# Python itself is not instrumented: its allocator hides objects from the sanitizer, and it leaks at exit by design.
# libstdc++ is loaded first, so that the sanitizer finds the function behind every C++ exception.
export LD_PRELOAD="$("$compiler" -print-file-name=libasan.so):$("$compiler" -print-file-name=libstdc++.so.6)"
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc
args=("$@")
[ ${#args[@]} -gt 0 ] || args=(tests/test_latent.py tests/test_likelihood.py tests/test_noise.py -k "cpu and not compile")
"$python" -m pytest -q -p no:cacheprovider "${args[@]}"
