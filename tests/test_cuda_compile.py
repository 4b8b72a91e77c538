"""Every CUDA kernel compiled for ARCHITECTURES (cuda_objects.py): ptxas's report and the SASS are read."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from cuda_emulation.build import OPS
from cuda_objects import (
    ACCESS,
    ARCHITECTURES,
    COUNTS,
    CSRC,
    LIKELIHOODS,
    NVCC,
    SASS_TOOL,
    compile_ops,
    compiled,
    entries,
    readable,
    sass,
)

LIGHT = [
    name
    for file in (CSRC / "formulas/likelihoods").glob("*.h")
    for name in re.findall(r"struct (\w+) \{(?:(?!struct )[^}])*is_light = true;", file.read_text())
]


def expected() -> dict[str, set[str]]:
    """The kernels there should be, as csrc/cuda/access.h says it: those with a prior or with sums over the batch have
    no form of 8 elements, and those with long arithmetic none of mixed dtypes."""
    narrow = ("float32", "narrow", "any")
    access = (*narrow, "bfloat16", "float16", "wide")
    latent = {f"latent_forward {a} 0" for a in access} | {f"latent_forward {a} 1" for a in narrow}
    latent |= {f"latent_backward {a} 0 0" for a in access}
    latent |= {f"latent_backward {a} 1 {sums}" for a in narrow for sums in "01"}
    form = ("narrow", "any")
    latent |= {f"latent_form_forward {a} {prior}" for a in form for prior in "01"}
    latent |= {
        f"latent_form_backward {a} {prior_and_sums}" for a in form for prior_and_sums in ("0 0", "1 0", "1 1")
    }
    likelihood = set()
    for name in LIKELIHOODS:
        forms = access if name in LIGHT else (*narrow, "bfloat16", "float16")
        many = name in (
            "ZeroInflatedNegativeBinomial",
            "NegativeBinomialMixture",
        )  # parameters: they would spill
        forward = narrow if many else forms
        likelihood |= {f"likelihood_forward {a} {name}" for a in forward}
        likelihood |= {f"likelihood_backward {a} {name} 0" for a in forms}
        likelihood |= {f"likelihood_backward {a} {name} 1" for a in narrow}
        if name in COUNTS:
            likelihood |= {f"likelihood_forward sparse {name}"}
            likelihood |= {f"likelihood_backward sparse {name} {sums}" for sums in "01"}
    ways, counts = ("forward", "backward"), "01"
    importance = {f"importance_forward {a} {prior}" for a in form for prior in "01"}
    importance |= {f"importance_backward {a} {way}" for a in form for way in ("0 0", "1 0", "1 1")}
    return {
        "latent": latent,
        "importance": importance,
        "likelihood": likelihood,
        "categorical": {f"categorical_{way} {a} {c}" for way in ways for a in access for c in counts}
        | {f"categorical_{way} sparse 1" for way in ways},
        "mixture": {f"mixture_{way} {channels}" for way in ways for channels in "13"},
        "noise": {f"noise_fill {a}" for a in access},
        "pairwise": {
            f"pairwise_{of}" for of in ("forward", "backward_rows", "backward_columns", "add_parts")
        },
    }


pytestmark = [pytest.mark.slow, pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")]
needs_sass = pytest.mark.skipif(SASS_TOOL is None, reason="neither CUDA's nor Triton's cuobjdump is here")

# What the kernels are made of, one Philox call for four normals, and nothing around it.
PROBE = """
#include "math/approximate.h"
#include "math/philox.h"
using namespace vae_fast;
__global__ void normals(float4* out, RngState state, int calls) {
  const unsigned i = threadIdx.x;
#pragma unroll 1
  for (int c = 0; c < calls; ++c) {  // 8 normals, as a thread of the kernels makes them
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      const Words w = state.words(2 * c + g, i);
      const NormalPair<float> a = approximate_box_muller(w.w0, w.w1), b = approximate_box_muller(w.w2, w.w3);
      out[2 * c + g] = make_float4(a.first, a.second, b.first, b.second);
    }
    state.key0 += i, state.key1 += i;  // new round keys each time
  }
}
"""


@pytest.fixture(scope="module")
def objects() -> dict[str, tuple[Path, str]]:
    return compile_ops()


def test_the_library_is_small(objects: dict[str, tuple[Path, str]]) -> None:
    """Two architectures and PTX; linking adds the runtime's 1 MB."""
    sizes = {kernel: path.stat().st_size / 1e6 for kernel, (path, _) in objects.items()}
    print({kernel: round(size, 2) for kernel, size in sizes.items()})
    assert sum(sizes.values()) < 7 * len(ARCHITECTURES)


@pytest.mark.parametrize("kernel", OPS)
def test_nothing_spills(objects: dict[str, tuple[Path, str]], kernel: str) -> None:
    found = list(entries(objects[kernel][1]))
    for architecture in ARCHITECTURES:
        names = [readable(name) for where, name, _ in found if where == architecture]
        assert sorted(names) == sorted(expected()[kernel])
    for architecture, name, numbers in found:
        registers = numbers.pop("registers")
        print(f"{architecture:7} {readable(name):40} {registers:4} registers")
        assert not any(numbers.values()), (architecture, readable(name), numbers)
        # Two negative binomials, and their five sums, leave room for one block (csrc/cuda/likelihood.cu), and so does
        # a prior's gradient summed over draws and batch at any strides (csrc/cuda/importance.cu).
        is_large = (
            "NegativeBinomialMixture" in readable(name) or readable(name) == "importance_backward any 1 1"
        )
        assert registers <= (255 if is_large else 128), "two blocks must fit a processor"


@needs_sass
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", OPS)
def test_dense_accesses_are_128_bits_wide(
    objects: dict[str, tuple[Path, str]], kernel: str, architecture: str
) -> None:
    functions = sass(objects[kernel][0], architecture)
    assert {readable(name) for name in functions} == expected()[kernel]
    for name, instructions in functions.items():
        used = Counter(text.split()[0] for _, _, text in instructions)
        what = f"{readable(name)}: {dict(used.most_common(8))}"
        assert not any(op.startswith(("LDL", "STL")) for op in used), what
        if not set(ACCESS.values()) - {"any"} & set(readable(name).split()):
            continue  # one by one: any strides, and a mixture's pixels, side by side in the threads of a warp
        if "noise" not in readable(name):
            assert any(re.match(r"LDG\.E\S*\.128", op) for op in used), what
        if not readable(name).startswith(("likelihood_forward", "categorical_forward")):
            assert any(re.match(r"STG\.E\S*\.128", op) for op in used), what


@needs_sass
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_instructions_per_normal(architecture: str, tmp_path: Path) -> None:
    """What bounds the latent kernels in 16 bits is this number, not the memory: csrc/cuda/noise.h."""
    probe = tmp_path / "probe.cu"
    probe.write_text(PROBE)
    (instructions,) = sass(compiled(probe)[0], architecture).values()
    loops = []
    for address, _, text in instructions:
        target = re.search(r"^BRA\S* .*?(0x[0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            loops.append([t.split()[0] for a, _, t in instructions if int(target[1], 16) <= a <= address])
    (loop,) = loops
    print(f"{architecture}: {len(loop) / 8:.1f} instructions a normal, {Counter(loop).most_common(8)}")
    assert len(loop) / 8 < 42
    slow_paths = [text for _, _, text in instructions if text.startswith("RET")]
    assert not slow_paths, "square root and division need no subroutine here"
