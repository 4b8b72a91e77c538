// The noise contract on the GPU: the standard normals of a chunk, a pure function of (rng_state, row, element).
//
// 28 instructions a normal on sm_80, sm_90 and sm_100 (SASS; tests/test_cuda_compile.py counts them): 13 for Philox, 15 for
// Box and Muller's transform with the hardware's logarithm and root (math/approximate.h), within 4e-6 and without the bits
// of the CPU engine, whose polynomials would be 10 more.
#pragma once

#include "../math/philox.h"
#include "memory.h"

namespace vae_fast {

// Drawn, from one state: the schedule of Philox's keys stays in registers.
inline bool is_plain(const Noise& noise) { return !noise.given && !noise.state_per_sample; }

struct NoiseState : RngState { std::uint32_t first_row; };

// Read in the kernel: a CUDA-graph replay sees the state of that moment.
VAE_FAST_DEVICE NoiseState state_of(const Noise& noise, std::int64_t row) {
  if (!noise.rng_state) return {};
  const std::int64_t* state = noise.rng_state + (noise.state_per_sample ? 2 * row : 0);
  return {RngState::from(state[0], state[1]), noise.has_rows ? static_cast<std::uint32_t>(state[2]) : 0};
}
// That of all rows, or nothing where each has its own.
VAE_FAST_DEVICE NoiseState shared_state_of(const Noise& noise) { return noise.state_per_sample ? NoiseState{} : state_of(noise, 0); }

VAE_FAST_DEVICE std::uint32_t counter_row_of(const Noise& noise, const NoiseState& state, std::int64_t draw, std::int64_t row) {
  const std::uint32_t k = static_cast<std::uint32_t>(draw);
  if (noise.state_per_sample) return k;
  // Read again for each chunk: a register more would be spilled in the backward pass of a prior.
  const std::int64_t rows = noise.has_rows ? noise.rng_state[3] : noise.rows;
  return k * static_cast<std::uint32_t>(rows) + state.first_row + static_cast<std::uint32_t>(row);
}

// The normals of one draw of a chunk: from the caller's own noise, or made here, four a Philox call.
template <class A>
VAE_FAST_DEVICE void normals(const Noise& noise, const NoiseState& state, std::int64_t draw, std::int64_t row, std::int64_t column,
                             int count, float (&eps)[A::size]) {
  if constexpr (!A::plain) {
    if (noise.given) {
      load<A>(noise.given, row * noise.given.row_stride + draw * noise.given.draw_stride, column, count, eps);
      return;
    }
  }
  const std::uint32_t counter_row = counter_row_of(noise, state, draw, row);
  const std::uint32_t group = static_cast<std::uint32_t>(column >> 2);
#pragma unroll
  for (int g = 0; g < A::size / 4; ++g) {
    const Words w = state.words(group + g, counter_row);
    const NormalPair<float> a = approximate_box_muller(w.w0, w.w1), b = approximate_box_muller(w.w2, w.w3);
    eps[4 * g] = a.first, eps[4 * g + 1] = a.second, eps[4 * g + 2] = b.first, eps[4 * g + 3] = b.second;
  }
}

// 1 with probability x, else 0, for each element of a chunk: the same in every pass that asks.
template <class A>
VAE_FAST_DEVICE void binarize(const Noise& noise, std::int64_t row, std::int64_t column, float (&x)[A::size]) {
  const NoiseState given = state_of(noise, row);
  const RngState state = given.for_target();
  const std::uint32_t counter_row = counter_row_of(noise, given, 0, row);
#pragma unroll
  for (int g = 0; g < A::size / 4; ++g) {
    const Words w = state.words(static_cast<std::uint32_t>(column >> 2) + g, counter_row);
    const std::uint32_t word[4] = {w.w0, w.w1, w.w2, w.w3};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float p = x[4 * g + i];
      x[4 * g + i] = p != p ? p : uniform<float>(word[i]) < p ? 1.0f : 0.0f;
    }
  }
}

}  // namespace vae_fast
