// Philox4x32-10: a keyed bijection of 128-bit counters whose output passes BigCrush.
// Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. doi:10.1145/2063384.2063405
#pragma once

#include "portable.h"

VAE_FAST_NAMESPACE_BEGIN

struct Philox {
  static constexpr int rounds = 10;
  static constexpr std::uint32_t multiplier0 = 0xD2511F53u, multiplier1 = 0xCD9E8D57u;
  static constexpr std::uint32_t weyl0 = 0x9E3779B9u, weyl1 = 0xBB67AE85u;  // golden ratio, sqrt(3) - 1
};

// A word as a number in [0, 1): 24 bits, exact in float32.
// Error of uniform: word in words; 0 ulp
template <class F> VAE_FAST_FN F uniform(u32_of<F> word) {
  return to_float<F>(bit_cast<i32_of<F>>(word >> 8)) * splat<F>(0x1p-24f);
}

struct Words { std::uint32_t w0, w1, w2, w3; };

VAE_FAST_FN std::uint32_t mul_high(std::uint32_t a, std::uint32_t b) {
#if defined(__CUDA_ARCH__)
  return __umulhi(a, b);
#else
  return static_cast<std::uint32_t>((static_cast<std::uint64_t>(a) * b) >> 32);
#endif
}

// Exact: integers.
VAE_FAST_FN Words philox(Words counter, std::uint32_t key0, std::uint32_t key1) {
  Words c = counter;
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int round = 0; round < Philox::rounds; ++round) {
    const std::uint32_t high0 = mul_high(Philox::multiplier0, c.w0), low0 = Philox::multiplier0 * c.w0;
    const std::uint32_t high1 = mul_high(Philox::multiplier1, c.w2), low1 = Philox::multiplier1 * c.w2;
    c = {high1 ^ c.w1 ^ key0, low1, high0 ^ c.w3 ^ key1, low0};
    key0 += Philox::weyl0;
    key1 += Philox::weyl1;
  }
  return c;
}

// What one rng_state (seed, offset) fixes for all elements of a draw. The counter of the element with row-major index
// j in sample `row` is (j >> 2, row, offset_lo, offset_hi): a pure function of position, whatever the memory layout.
struct RngState {
  std::uint32_t key0, key1, offset_lo, offset_hi;
  VAE_FAST_FN static RngState from(std::int64_t seed, std::int64_t offset) {
    const std::uint64_t s = static_cast<std::uint64_t>(seed), o = static_cast<std::uint64_t>(offset);
    return {static_cast<std::uint32_t>(s), static_cast<std::uint32_t>(s >> 32),
            static_cast<std::uint32_t>(o), static_cast<std::uint32_t>(o >> 32)};
  }
  // A stream of its own under the same state: that of a target's binarization, beside the latent's noise.
  VAE_FAST_FN RngState for_target() const { return {key0, key1, offset_lo, offset_hi ^ 0x80000000u}; }
  VAE_FAST_FN Words words(std::uint32_t group, std::uint32_t row) const {
    return philox({group, row, offset_lo, offset_hi}, key0, key1);
  }
};

VAE_FAST_NAMESPACE_END
