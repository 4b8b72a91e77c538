"""The noise contract on a GPU: Philox4x32-10 words, four normals a call, and the kernel that writes noise alone.

Philox: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A 32x32 bit product is
written as a 64-bit one, which NVIDIA computes in one instruction (umulhi and mul would be two).

Box-Muller in float32, within 4e-6 of the float64 definition. Where the bound comes from, with r at most 6.76:
  * The hardware's log2 is off by 2^-22, absolute near 1, where r is small and the square root would magnify it. So
    within 2^-6 of 1 two terms of log(1 + y) stand in. This and the square root put 1.7e-6 into r at most.
  * cos and sin are polynomials over half a turn, and the other half is a flipped sign of r: no branches, no
    selects, and the same numbers on every device. The angle is off by 1.6e-7, 1.1e-6 in the result. (The hardware's
    own cos would add 2^-21.2, 2.8e-6 at the largest r.)
About 24 instructions a normal on sm_90, of which Philox is 10 (tests/test_triton_compile.py counts them).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .formulas import log2
from .launch import Job, Key, Spec, cached, key, run
from .layout import choice_of, constants, describe, draw_steps, elementwise_plan, pair
from .tile import elements, load_each, locate, origin, read, samples, step_of, swapped_group, write


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 of four counter words and two key words (uint32; they broadcast)."""
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = p1.to(tl.uint32)
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = p0.to(tl.uint32)
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def box_muller(w0, w1):
    """r cos(2 pi u2), r sin(2 pi u2) with u1 = (w0 + 1/2) 2^-32, u2 = w1 2^-32, r = sqrt(-2 ln u1)."""
    u = w0.to(tl.float32) * 2.0**-32 + 2.0**-33
    # -log2(1 + y) near 1, two terms, with y = (f + 1/2) 2^-32 multiplied out; f is exact where y is small.
    f = w0.to(tl.int32, bitcast=True).to(tl.float32)
    near = -1.679474677351105e-10 + f * (-3.35894935470221e-10 + f * 3.9619741044102704e-20)
    r = tl.sqrt(tl.where(u > 1 - 2.0**-6, near, -log2(u)))
    # The angle is half a turn if the top bit of w1 is set, which flips both signs, plus a quarter turn, plus x.
    r = (r.to(tl.uint32, bitcast=True) ^ (w1 & 0x80000000)).to(tl.float32, bitcast=True)
    x = (w1 << 1).to(tl.float32) * 7.314590396335798e-10 - 1.5707963267948966  # pi 2^-32, pi / 2
    t = x * x
    # cos x and -sin x, times sqrt(2 ln 2)
    # fit_polynomials.py cosine_scaled: √(2·ln 2)·cos(x) of x², x <= π/2; 1.6e-07 absolute
    c = 0.049055122191586740 + t * (-0.0016311490301485422 + t * 2.7261671196336427e-05)
    c = 1.177409967726666700 + t * (-0.5887038968047316000 + t * c)
    # fit_polynomials.py sine_scaled: -√(2·ln 2)·sin(x)/x of x², x <= π/2; 2.6e-08 times x
    s = -0.009811239768634692 + t * (0.00023313775480892830 + t * -3.0500671240683797e-06)
    s = x * (-1.1774099949521675 + t * (0.19623477966758793 + t * s))
    return r * s, r * c


@triton.jit
def _four(group, row, o0, o1, k0, k1):
    w0, w1, w2, w3 = philox(group, row, o0, o1, k0, k1)
    a, b = box_muller(w0, w1)
    c, d = box_muller(w2, w3)
    return a, b, c, d


@triton.jit
def _halves(x):
    """The two uint32 halves of an int64, low first."""
    return x.to(tl.uint32), (x >> 32).to(tl.uint32)


def state_strides(rng: Spec | None) -> tuple[int, ...]:
    """A kernel's rng_s: where the words of one state after the first are, one or three; two strides of many states."""
    if rng is None:
        return ()
    return rng.strides if len(rng.shape) == 2 else tuple(i * rng.strides[0] for i in range(1, rng.shape[0]))


@triton.jit
def read_state(rng, rng_s, at, rows):
    """(k0, k1, o0, o1) as uint32, scalars from one state, (ROWS, 1) from one state per sample; then the first sample's
    row and the rows of a draw."""
    first_row = tl.cast(0, tl.int64)
    if len(rng_s) == 2:
        seed = load_each(rng, rng_s[0], at)
        offset = load_each(rng + rng_s[1], rng_s[0], at)
    else:
        seed = tl.load(rng)
        offset = tl.load(rng + rng_s[0])
        if len(rng_s) == 3:
            first_row = tl.load(rng + rng_s[1])
            rows = tl.load(rng + rng_s[2])
    k0, k1 = _halves(seed)
    o0, o1 = _halves(offset)
    return k0, k1, o0, o1, first_row, rows


@triton.jit
def _four_uniforms(group, row, o0, o1, k0, k1):
    """The upper 24 bits of each word, as numbers in [0, 1)."""
    w0, w1, w2, w3 = philox(group, row, o0, o1, k0, k1)
    scale = 2.0**-24
    return (
        (w0 >> 8).to(tl.float32) * scale,
        (w1 >> 8).to(tl.float32) * scale,
        (w2 >> 8).to(tl.float32) * scale,
        (w3 >> 8).to(tl.float32) * scale,
    )


@triton.jit
def _spread(
    FOUR: tl.constexpr, state, word, start, n, sizes,
    PAIR: tl.constexpr, SWAP: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """The numbers that FOUR makes of each Philox call, at COLS places from `start` (see tile.elements): (ROWS, COLS).

    PAIR: a thread makes two neighbouring groups of four, so that eight 16-bit results make one 128-bit store
    without an exchange between threads.
    """
    k0, k1, o0, o1, _, _ = state
    if PAIR:
        group = (start // 4).to(tl.uint32) + 2 * tl.arange(0, COLS // 8)[None, :].to(tl.uint32)
        a, b, c, d = FOUR(group, word, o0, o1, k0, k1)
        e, f, g, h = FOUR(group + 1, word, o0, o1, k0, k1)
        a = tl.join(a, e)
        b = tl.join(b, f)
        c = tl.join(c, g)
        d = tl.join(d, h)
    else:
        group = start // 4 + tl.arange(0, COLS // 4)[None, :]
        if SWAP:
            group = swapped_group(group, n, sizes)
        a, b, c, d = FOUR(group.to(tl.uint32), word, o0, o1, k0, k1)
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (ROWS, COLS))


@triton.jit
def _row_word(at, before):
    """The low 32 bits of the samples' numbers, `before` of which are not of this tensor."""
    return tl.add((at[0] + before).to(tl.uint32), at[1].to(tl.uint32), sanitize_overflow=False)


@triton.jit
def normals(
    state, rng_s, draw, at, start, n, sizes,
    PAIR: tl.constexpr, SWAP: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """The noise of a tile's samples, draw by draw."""
    if len(rng_s) == 2:
        word = draw.to(tl.uint32)
    else:
        word = _row_word(at, draw * state[5] + state[4])
    return _spread(_four, state, word, start, n, sizes, PAIR, SWAP, ROWS, COLS)


@triton.jit
def eps_of(
    noise, state, rng_s, draw, noise_draw, at, start, n, sizes,
    PAIR: tl.constexpr, VEC: tl.constexpr, SWAP: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """The noise of a draw: drawn, or read from `noise`, the pointers of the first draw."""
    if noise is None:
        return normals(state, rng_s, draw, at, start, n, sizes, PAIR, SWAP, ROWS, COLS)
    else:
        return read(noise + step_of(draw, noise_draw, VEC), at)


@triton.jit
def uniforms(
    rng, rng_s, at, start, n, sizes,
    PAIR: tl.constexpr, SWAP: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """What binarization compares with: words of counters that noise never has (the offset's top bit is flipped)."""
    k0, k1, o0, o1, first_row, _ = read_state(rng, rng_s, at, 0)
    if len(rng_s) == 2:
        word = tl.zeros((ROWS, 1), tl.uint32)
    else:
        word = _row_word(at, first_row)
    state = (k0, k1, o0, o1 ^ 0x80000000, first_row, 0)
    return _spread(_four_uniforms, state, word, start, n, sizes, PAIR, SWAP, ROWS, COLS)


@triton.jit(do_not_specialize=["rows", "draws", "each"])
def _fill(
    eps, rng, eps_s, eps_draw, rng_s, rows, n, sizes, draws, each,
    ONE: tl.constexpr, PAIR: tl.constexpr, PARTS: tl.constexpr, WHOLE: tl.constexpr,
    VEC: tl.constexpr, SWAP: tl.constexpr, OFFSETS_64: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    first, local, inside = samples(pid // PARTS, rows, OFFSETS_64, ROWS)
    start = (pid % PARTS).to(tl.int64 if OFFSETS_64 else tl.int32) * COLS
    cols, there = elements(start, n, sizes, WHOLE, VEC, SWAP, COLS)
    at = (first, local, cols, inside, there, inside & there)
    state = read_state(rng, rng_s, at, rows)
    where = origin(eps, eps_s, at, VEC) + locate(at, sizes, eps_s, VEC)
    if ONE:
        x = normals(
            state, rng_s, tl.cast(0, tl.int64), at, start, n, sizes, PAIR, SWAP, ROWS, COLS
        )  # fmt: skip
        write(where, x, at)
    else:
        draw = tl.program_id(1).to(tl.int64) * each
        end = tl.minimum(draw + each, draws)
        while draw < end:  # at run time: one compiled kernel serves any number of draws
            x = normals(
                state, rng_s, draw, at, start, n, sizes, PAIR, SWAP, ROWS, COLS
            )  # fmt: skip
            write(where + step_of(draw, eps_draw, VEC), x, at)
            draw += 1


@cached
def _job(device: torch.device, eps_key: Key, rng_key: Key) -> Job:
    assert eps_key is not None and rng_key is not None
    eps, rng = Spec(*eps_key), Spec(*rng_key)
    draws, rows = eps.shape[:2]
    at = describe(eps.shape[1:], eps.strides[1:], draws=eps.strides[:1])
    plan = elementwise_plan(rows, at.n, choice_of("noise", eps))
    each = draw_steps(draws, plan.programs)
    rest = (
        at.strides[0],
        eps.strides[0],
        state_strides(rng),
        rows,
        at.n,
        at.sizes,
        draws,
        each,
        draws == 1,
        pair(at, eps),
    )
    return Job(_fill, (plan.programs, triton.cdiv(draws, each)), plan.threads, (*rest, *constants(at, plan)))


def noise_fill(eps: Tensor, rng_state: Tensor) -> None:
    """Writes the noise of `rng_state` into eps (draws, batch, ...)."""
    if eps.numel():
        run(_job(eps.device, key(eps), key(rng_state)), eps, eps, rng_state)
