// The noise contract on the CPU: the numbers of a block, a pure function of (rng_state, row, element).
#pragma once

#include "../../math/normal.h"
#include "../../math/philox.h"
#include "prefetch.h"
#include "../../api/arguments.h"
#include "block_io.h"
#include "../simd/vector_pair.h"

VAE_FAST_NAMESPACE_BEGIN

constexpr int kCounters = kLanes / 2;  // Philox keeps a 32-bit word in every 64-bit lane: its multiply widens in place
// Independent counters in flight hide the multiply's latency; 4 vectors each, as many as the registers hold.
constexpr int kStreams = kLanes < 16 ? 3 : 4;
constexpr int kStep = kCounters * kStreams;
constexpr int kSlack = 4 * kStep;      // normals written beyond the wanted ones

struct alignas(64) NoiseBuffer { float data[kBlock + kSlack]; };

// What all counters of an rng_state share, spread over the lanes.
struct BroadcastState {
  vu64 key0[Philox::rounds], key1[Philox::rounds], offset_lo, offset_hi;
  VAE_FAST_FN explicit BroadcastState(const RngState& state) {
    const vu64 zero{};
    for (int round = 0; round < Philox::rounds; ++round) {
      key0[round] = zero + static_cast<std::uint32_t>(state.key0 + round * Philox::weyl0);
      key1[round] = zero + static_cast<std::uint32_t>(state.key1 + round * Philox::weyl1);
    }
    offset_lo = zero + state.offset_lo;
    offset_hi = zero + state.offset_hi;
  }
};

// One step of Philox: kStreams vectors of counters, their words in the low halves of the lanes.
struct Step { vu64 c0[kStreams], c1[kStreams], c2[kStreams], c3[kStreams]; };

VAE_FAST_FN Step philox(const BroadcastState& state, const std::uint64_t* group, const std::uint64_t* row) {
  const vu64 zero{}, m0 = zero + Philox::multiplier0, m1 = zero + Philox::multiplier1;
  Step c;
  for (int s = 0; s < kStreams; ++s) {
    c.c0[s] = halves_to_even_odd(load<vu64>(group + s * kCounters));
    c.c1[s] = halves_to_even_odd(load<vu64>(row + s * kCounters));
    c.c2[s] = state.offset_lo;
    c.c3[s] = state.offset_hi;
  }
  // The lanes' high halves are don't-care: the multiply reads the low ones.
  for (int round = 0; round < Philox::rounds; ++round) {
    for (int s = 0; s < kStreams; ++s) {
      const vu64 product0 = multiply_low_halves(m0, c.c0[s]), product1 = multiply_low_halves(m1, c.c2[s]);
      c.c0[s] = (product1 >> 32) ^ c.c1[s] ^ state.key0[round];
      c.c2[s] = (product0 >> 32) ^ c.c3[s] ^ state.key1[round];
      c.c1[s] = product1;
      c.c3[s] = product0;
    }
  }
  return c;
}

// What becomes of the words w0 and w1, or w2 and w3, of a counter.
struct Normals {
  static VAE_FAST_FN RngState stream(const RngState& state) { return state; }
  template <class F> static VAE_FAST_FN NormalPair<F> pair(u32_of<F> w0, u32_of<F> w1) { return box_muller<F>(w0, w1); }
};
struct Uniforms {
  static VAE_FAST_FN RngState stream(const RngState& state) { return state.for_target(); }
  template <class F> static VAE_FAST_FN NormalPair<F> pair(u32_of<F> w0, u32_of<F> w1) { return {uniform<F>(w0), uniform<F>(w1)}; }
};

// out[4i..4i+3] = the four numbers of counter (group[i], row[i]), in whole steps. halves_to_even_odd and the two
// interleaves keep the order with three instructions a vector. Words first, normals after, two vectors at once: their
// long chains of dependent instructions need others in flight beside them.
template <class Kind>
inline void fill(const RngState& state, const std::uint64_t* group, const std::uint64_t* row, std::int64_t count, float* out, Prefetcher& prefetcher) {
  const BroadcastState spread(Kind::stream(state));
  for (std::int64_t i = 0; i < count; i += kStep) {
    const Step c = philox(spread, group + i, row + i);
    for (int s = 0; s < kStreams; ++s) {
      float* to = out + 4 * (i + s * kCounters);
      store(to, pair_low_halves(c.c0[s], c.c2[s]));
      store(to + kLanes, pair_low_halves(c.c1[s], c.c3[s]));
    }
  }
  for (float *to = out, *end = out + 4 * count; to < end; to += 4 * kLanes) {
    prefetcher.step();
    const auto words = [&](int v) VAE_FAST_LAMBDA { return load<vu32>(to + v * kLanes); };
    const auto n = Kind::template pair<VectorPair<vf32>>({words(0), words(2)}, {words(1), words(3)});
    store(to, interleave_low(n.first.a, n.second.a));
    store(to + kLanes, interleave_high(n.first.a, n.second.a));
    store(to + 2 * kLanes, interleave_low(n.first.b, n.second.b));
    store(to + 3 * kLanes, interleave_high(n.first.b, n.second.b));
  }
}

// The numbers of one draw of a block, dense.
template <class Kind>
inline const float* draw_numbers(const Noise& noise, std::int64_t draw, const Block& block, NoiseBuffer& buffer,
                                 Prefetcher& prefetcher) {
  // Rows whose length is no multiple of 4 leave part of their last counter unused.
  const std::int64_t groups = (block.columns + 3) / 4, padded = 4 * groups, total = block.rows * groups;
  alignas(64) std::uint64_t group[kBlock + kStep], row[kBlock + kStep];
  alignas(64) float spaced[4 * (kBlock + kStep)];
  const bool compact = padded == block.columns || block.rows == 1;
  float* out = compact ? buffer.data : spaced;

  const std::int64_t* state = noise.rng_state;
  if (noise.state_per_sample) {
    for (std::int64_t g = 0; g < groups; ++g) group[g] = block.column / 4 + g;
    for (std::int64_t g = 0; g < groups; ++g) row[g] = draw;
    for (std::int64_t r = 0; r < block.rows; ++r) {
      const std::int64_t* own = state + 2 * (block.row + r);
      fill<Kind>(RngState::from(own[0], own[1]), group, row, groups, out + r * padded, prefetcher);
    }
  } else {
    const std::int64_t first = (noise.has_rows ? draw * state[3] + state[2] : draw * noise.rows) + block.row;
    for (std::int64_t r = 0; r < block.rows; ++r) {
      for (std::int64_t g = 0; g < groups; ++g) group[r * groups + g] = block.column / 4 + g;
      for (std::int64_t g = 0; g < groups; ++g) row[r * groups + g] = first + r;
    }
    fill<Kind>(RngState::from(state[0], state[1]), group, row, total, out, prefetcher);
  }
  if (!compact)
    for (std::int64_t r = 0; r < block.rows; ++r)
      for (std::int64_t c = 0; c < block.columns; ++c) buffer.data[r * block.columns + c] = spaced[r * padded + c];
  return buffer.data;
}

inline Prefetcher prefetcher_during_noise(const Block& block) { return Prefetcher(block.size() / (4 * kLanes) + 1); }

// The normals of one draw of a block: in the noise the caller brought, or made here.
inline const float* normals(const Noise& noise, std::int64_t draw, const Block& block, NoiseBuffer& buffer,
                            Prefetcher& prefetcher) {
  if (noise.given) return read(noise.given.draw(draw), block, reinterpret_cast<Buffer&>(buffer));
  return draw_numbers<Normals>(noise, draw, block, buffer, prefetcher);
}

// 1 with probability `target`, else 0; or the target itself where no rng_state is given.
inline const float* binarized(const Noise& noise, const float* target, const Block& block, NoiseBuffer& buffer) {
  if (!noise.rng_state) return target;
  Prefetcher prefetcher = prefetcher_during_noise(block);
  const float* numbers = draw_numbers<Uniforms>(noise, 0, block, buffer, prefetcher);
  for_each_vector(block.size(), [&](std::int64_t i, int count) VAE_FAST_LAMBDA {
    const vf32 x = load_partial(target + i, count), bit = select(load<vf32>(numbers + i) < x, splat<vf32>(1.0f), vf32{});
    store(buffer.data + i, select(x != x, x, bit));  // NaN stays NaN
  });
  return buffer.data;
}

VAE_FAST_NAMESPACE_END
