// The noise on its own: what vae_fast.noise returns, and the words behind it. Compiled once per instruction set.
#include "blocks/noise.h"

#include "blocks/blocks.h"
#include "isa_kernels.h"

VAE_FAST_NAMESPACE_BEGIN

void noise_fill(const NoiseFill& a, const Task& task) {
  for_each_block(a.tiling, task, [&](const Block& block) {
    NoiseBuffer noise_buffer;
    Buffer buffer;
    for (std::int64_t draw = 0; draw < a.draws; ++draw) {
      const View view = a.eps.draw(draw);
      Prefetcher prefetcher = prefetcher_during_noise(block);
      prefetcher.add_always(view, block);
      const float* eps = normals(a.noise, draw, block, noise_buffer, prefetcher);
      float* to = destination(view, block, buffer);
      memcpy(to, eps, block.size() * sizeof(float));
      write(view, block, to);
    }
  });
}

void noise_words(const std::int64_t* rng_state, std::int64_t group, std::int64_t row, std::int64_t count,
                 std::uint32_t* words) {
  const BroadcastState state(RngState::from(rng_state[0], rng_state[1]));
  for (std::int64_t i = 0; i < count; i += kStep) {
    std::uint64_t groups[kStep], rows[kStep];
    for (int s = 0; s < kStep; ++s) groups[s] = static_cast<std::uint32_t>(group + i + s), rows[s] = row;
    const Step c = philox(state, groups, rows);
    for (int s = 0; s < kStep; ++s) {
      // halves_to_even_odd, undone
      const int in = s % kCounters, stream = s / kCounters, half = kCounters / 2;
      const int lane = in < half ? 2 * in : 2 * (in - half) + 1;
      if (i + s >= count) break;
      std::uint32_t* to = words + 4 * (i + s);
      to[0] = static_cast<std::uint32_t>(c.c0[stream][lane]);
      to[1] = static_cast<std::uint32_t>(c.c1[stream][lane]);
      to[2] = static_cast<std::uint32_t>(c.c2[stream][lane]);
      to[3] = static_cast<std::uint32_t>(c.c3[stream][lane]);
    }
  }
}

VAE_FAST_NAMESPACE_END
