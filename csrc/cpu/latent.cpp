// The op `latent` on the CPU: one pass forward, one backward; eps is made on the fly both times, never stored.
// Compiled once per instruction set (VAE_FAST_ISA).
#include "../formulas/gaussian_kl.h"
#include "blocks/blocks.h"
#include "blocks/noise.h"
#include "isa_kernels.h"

VAE_FAST_NAMESPACE_BEGIN

namespace {

VAE_FAST_FN vf32 clamped(vf32 logvar, const Clamp& c) { return c.active ? clamp(logvar, c.low, c.high) : logvar; }

// (z - shift)·scale, where there are any.
template <bool kHasForm> struct Affine {
  VAE_FAST_FN Affine(const LatentForward&, const Block&) {}
  VAE_FAST_FN vf32 of(vf32 z, std::int64_t, int) const { return z; }
};
template <> struct Affine<true> {
  Buffer shift_buffer, scale_buffer;
  const float *shift = nullptr, *scale = nullptr;
  VAE_FAST_FN Affine(const LatentForward& a, const Block& block) {
    if (a.shift) shift = read(a.shift, block, shift_buffer);
    if (a.scale) scale = read(a.scale, block, scale_buffer);
  }
  VAE_FAST_FN vf32 of(vf32 z, std::int64_t i, int count) const {
    if (shift) z = z - load_partial(shift + i, count);
    return scale ? z * load_partial(scale + i, count) : z;
  }
};

template <bool kHasForm> void forward(const LatentForward& a, const Task& task) {
  Losses kl(a.kl, a.tiling, task);
  const bool wants_kl = static_cast<bool>(a.kl);
  const bool one_pass = a.z && a.draws == 1;  // else exp(logvar/2) is kept for the draws
  const vf32 half = splat<vf32>(0.5f);
  for_each_block(a.tiling, task, [&](const Block& block) {
    Buffer mu_buffer, logvar_buffer, prior_mu_buffer, prior_logvar_buffer, first, second, terms, z_buffer;
    NoiseBuffer noise_buffer;
    Prefetcher prefetcher = prefetcher_during_noise(block);
    if (one_pass) prefetcher.add(block, a.mu, a.logvar, a.z);
    const float* eps = one_pass ? normals(a.noise, 0, block, noise_buffer, prefetcher) : nullptr;
    const float* mu = read(a.mu, block, mu_buffer);
    const float* logvar = read(a.logvar, block, logvar_buffer);
    float* z = one_pass ? destination(a.z, block, z_buffer) : nullptr;
    const Affine<kHasForm> affine(a, block);

    const auto emit_std = [&](std::int64_t i, int count, vf32 m, vf32 one, vf32 other) VAE_FAST_LAMBDA {  // exp(logvar/2)
      if (one_pass) return store_partial(z + i, affine.of(fma(one * load_partial(eps + i, count), other, m), i, count), count);
      store(first.data + i, one);
      store(second.data + i, other);
    };
    if constexpr (kHasForm) {
      const auto pass = [&](auto has_prior) VAE_FAST_LAMBDA {
        const float* prior_mu = has_prior() ? read(a.prior_mu, block, prior_mu_buffer) : mu;
        const float* prior_raw = has_prior() ? read(a.prior_logvar, block, prior_logvar_buffer) : logvar;
        for_each_vector(block.size(), [&](std::int64_t i, int count) VAE_FAST_LAMBDA {
          const auto of = [&](const float* p) VAE_FAST_LAMBDA { return load_partial(p + i, count); };
          const Sampled<vf32> s = sample_of<has_prior()>(of(mu), of(logvar), of(prior_mu), of(prior_raw), a.form, a.clamp);
          store(terms.data + i, s.term);
          if (!one_pass) store(mu_buffer.data + i, s.mu);
          emit_std(i, count, s.mu, s.first, s.second);
        });
      };
      if (a.prior_mu && wants_kl) pass(std::true_type{});
      else pass(std::false_type{});
      mu = mu_buffer.data;
    } else if (a.prior_mu && wants_kl) {
      const float* prior_mu = read(a.prior_mu, block, prior_mu_buffer);
      const float* prior_logvar = read(a.prior_logvar, block, prior_logvar_buffer);
      near_then_far(kFarLogvar, [&](auto near) VAE_FAST_LAMBDA {
        vf32 farthest{};
        for_each_vector(block.size(), [&](std::int64_t i, int count) VAE_FAST_LAMBDA {
          const vf32 m = load_partial(mu + i, count), lv = clamped(load_partial(logvar + i, count), a.clamp);
          const vf32 lvp = load_partial(prior_logvar + i, count);
          farthest = maximum(absolute(lvp), farthest);
          store(terms.data + i, divergence<near()>(m, lv, load_partial(prior_mu + i, count), lvp).value);
          const Factors<vf32> std = exp_factors(half * lv);
          emit_std(i, count, m, std.first, std.second);
        });
        return farthest;
      });
    } else {
      for_each_vector(block.size(), [&](std::int64_t i, int count) VAE_FAST_LAMBDA {
        const vf32 m = load_partial(mu + i, count), lv = clamped(load_partial(logvar + i, count), a.clamp);
        const Exponential<vf32> e = exponential(half * lv);
        store(terms.data + i, divergence(m, e));
        emit_std(i, count, m, e.first, e.second);
      });
    }
    if (wants_kl) kl.add(block, terms.data);
    if (one_pass) return write(a.z, block, z);

    for (std::int64_t draw = 0; a.z && draw < a.draws; ++draw) {
      const View view = a.z.draw(draw);
      const float* own = normals(a.noise, draw, block, noise_buffer, prefetcher);
      float* to = destination(view, block, z_buffer);
      for_each_vector(block.size(), [&](std::int64_t i, int count) VAE_FAST_LAMBDA {
        const vf32 scaled = load<vf32>(first.data + i) * load_partial(own + i, count);
        const vf32 drawn = fma(scaled, load<vf32>(second.data + i), load_partial(mu + i, count));
        store_partial(to + i, affine.of(drawn, i, count), count);
      });
      write(view, block, to);
    }
  });
}

}  // namespace

void latent_forward(const LatentForward& a, const Task& task) {
  if (a.form.is_plain() && !a.shift && !a.scale) forward<false>(a, task);
  else forward<true>(a, task);
}

namespace {

// What the draws contribute: the sum of grad_z, and that of grad_z·eps as the product of two arrays.
struct DrawSums {
  Buffer read_buffer, grad_buffer, weighted_buffer, ones;
  NoiseBuffer noise_buffer;
  const float *grad = nullptr, *weighted = nullptr, *factor = nullptr;

  VAE_FAST_FN void gather(const LatentBackward& a, const Block& block) {
    const bool wants_noise = static_cast<bool>(a.grad_logvar);
    Prefetcher prefetcher = prefetcher_during_noise(block);
    if (a.draws == 1) {
      prefetcher.add(block, a.grad_z, a.mu, a.logvar, a.grad_mu, a.grad_logvar);
      const float* eps = wants_noise ? normals(a.noise, 0, block, noise_buffer, prefetcher) : nullptr;
      grad = weighted = read(a.grad_z, block, read_buffer);
      factor = wants_noise ? eps : grad;
      return;
    }
    for (std::int64_t draw = 0; draw < a.draws; ++draw) {
      const float* g = read(a.grad_z.draw(draw), block, read_buffer);
      const float* eps = wants_noise ? normals(a.noise, draw, block, noise_buffer, prefetcher) : g;
      for_each_vector(block.size(), [&](std::int64_t i, int count) VAE_FAST_LAMBDA {
        const vf32 value = load_partial(g + i, count), product = value * load_partial(eps + i, count);
        store(grad_buffer.data + i, draw == 0 ? value : load<vf32>(grad_buffer.data + i) + value);
        store(weighted_buffer.data + i, draw == 0 ? product : load<vf32>(weighted_buffer.data + i) + product);
      });
    }
    for (std::int64_t i = 0; i < kBlock; ++i) ones.data[i] = 1.0f;
    grad = grad_buffer.data;
    weighted = weighted_buffer.data;
    factor = ones.data;
  }
};

template <bool kHasZ, bool kHasKl, bool kHasPrior, bool kHasForm> void backward(const LatentBackward& a, const Task& task) {
  for_each_block(a.tiling, task, [&](const Block& block) {
    Buffer mu_buffer, logvar_buffer, prior_mu_buffer, prior_logvar_buffer, upstream_buffer;
    Buffer grad_mu_buffer, grad_logvar_buffer, grad_prior_mu_buffer, grad_prior_logvar_buffer;
    DrawSums draws;
    if (kHasZ) draws.gather(a, block);
    const float* upstream = kHasKl ? read(a.grad_kl, block, upstream_buffer) : nullptr;
    const float* mu = kHasKl || kHasForm ? read(a.mu, block, mu_buffer) : nullptr;
    const float* logvar = read(a.logvar, block, logvar_buffer);
    const float* prior_mu = kHasPrior ? read(a.prior_mu, block, prior_mu_buffer) : nullptr;
    const float* prior_logvar = kHasPrior ? read(a.prior_logvar, block, prior_logvar_buffer) : nullptr;
    float* grad_mu = a.grad_mu ? destination(a.grad_mu, block, grad_mu_buffer) : grad_mu_buffer.data;
    float* grad_logvar = a.grad_logvar ? destination(a.grad_logvar, block, grad_logvar_buffer) : grad_logvar_buffer.data;
    float* grad_prior_mu = gradient_destination(a.grad_prior_mu, block, grad_prior_mu_buffer);
    float* grad_prior_logvar = gradient_destination(a.grad_prior_logvar, block, grad_prior_logvar_buffer);
    const bool wants_prior_mu = kHasPrior && wanted(a.grad_prior_mu);
    const bool wants_prior_logvar = kHasPrior && wanted(a.grad_prior_logvar);
    const vf32 half = splat<vf32>(0.5f);

    if constexpr (kHasForm) {
      Buffer scale_buffer;
      const float* scale = kHasZ && a.scale ? read(a.scale, block, scale_buffer) : nullptr;
      for_each_vector(block.size(), [&](std::int64_t i, int count) VAE_FAST_LAMBDA {
        const auto of = [&](const float* p) VAE_FAST_LAMBDA { return load_partial(p + i, count); };
        vf32 grad{}, weighted{};
        if constexpr (kHasZ) {
          grad = of(draws.grad), weighted = of(draws.weighted) * of(draws.factor);
          if (scale) grad = grad * of(scale), weighted = weighted * of(scale);
        }
        const FormGradient<vf32> g = gradient_of<kHasPrior>(
            of(mu), of(logvar), kHasPrior ? of(prior_mu) : vf32{}, kHasPrior ? of(prior_logvar) : vf32{},
            a.form, a.clamp, kHasZ, grad, weighted, kHasKl, kHasKl ? of(upstream) : vf32{});
        store_partial(grad_mu + i, g.mu, count);
        store_partial(grad_logvar + i, g.raw, count);
        if (wants_prior_mu) store_partial(grad_prior_mu + i, g.prior_mu, count);
        if (wants_prior_logvar) store_partial(grad_prior_logvar + i, g.prior_raw, count);
      });
    } else {
      const auto pass = [&](auto near) VAE_FAST_LAMBDA {
        vf32 farthest{};
        for_each_vector(block.size(), [&](std::int64_t i, int count) VAE_FAST_LAMBDA {
          const vf32 raw = load_partial(logvar + i, count), lv = clamped(raw, a.clamp);
          const Exponential<vf32> e = exponential(half * lv);
          vf32 by_mu{}, by_logvar{};
          if constexpr (kHasZ) {
            by_mu = load_partial(draws.grad + i, count);
            const vf32 drawn = half * (load_partial(draws.weighted + i, count) * load_partial(draws.factor + i, count));
            by_logvar = drawn * e.first * e.second;
          }
          if constexpr (kHasKl) {
            const vf32 g = load_partial(upstream + i, count), m = load_partial(mu + i, count);
            if constexpr (kHasPrior) {
              const vf32 lvp = load_partial(prior_logvar + i, count);
              const PriorDivergence<vf32> d = divergence<near()>(m, lv, load_partial(prior_mu + i, count), lvp);
              farthest = maximum(absolute(lvp), farthest);
              by_mu = fma(g, d.by_mu, by_mu);
              by_logvar = fma(g, d.by_logvar, by_logvar);
              if (wants_prior_mu) store_partial(grad_prior_mu + i, -(g * d.by_mu), count);
              if (wants_prior_logvar) store_partial(grad_prior_logvar + i, g * d.by_prior_logvar, count);
            } else {
              by_mu = fma(g, m, by_mu);
              by_logvar = fma(g, e.half_expm1, by_logvar);
            }
          }
          if (a.clamp.active) by_logvar = clamp_gradient(by_logvar, raw, a.clamp.low, a.clamp.high);
          store_partial(grad_mu + i, by_mu, count);
          store_partial(grad_logvar + i, by_logvar, count);
        });
        return farthest;
      };
      if constexpr (kHasPrior) near_then_far(kFarLogvar, pass);
      else pass(std::false_type{});
    }

    if (a.grad_mu) write(a.grad_mu, block, grad_mu);
    if (a.grad_logvar) write(a.grad_logvar, block, grad_logvar);
    if (wants_prior_mu) emit(a.grad_prior_mu, a.tiling, task, block, grad_prior_mu);
    if (wants_prior_logvar) emit(a.grad_prior_logvar, a.tiling, task, block, grad_prior_logvar);
  });
}

template <bool kHasForm> void backward(const LatentBackward& a, const Task& task) {
  const bool z = static_cast<bool>(a.grad_z), kl = static_cast<bool>(a.grad_kl), prior = kl && a.prior_mu;
  if (z && prior) backward<true, true, true, kHasForm>(a, task);
  else if (z && kl) backward<true, true, false, kHasForm>(a, task);
  else if (z) backward<true, false, false, kHasForm>(a, task);
  else if (prior) backward<false, true, true, kHasForm>(a, task);
  else if (kl) backward<false, true, false, kHasForm>(a, task);
  else backward<false, false, false, kHasForm>(a, task);
}

}  // namespace

void latent_backward(const LatentBackward& a, const Task& task) {
  if (a.form.is_plain() && !a.scale) backward<false>(a, task);
  else backward<true>(a, task);
}

VAE_FAST_NAMESPACE_END
