// The op `importance` on the CPU: log weights of k draws and their gradients; eps is made on the fly both times, never stored.
// Compiled once per instruction set (VAE_FAST_ISA).
#include "../formulas/gaussian_kl.h"
#include "../formulas/importance.h"
#include "blocks/blocks.h"
#include "blocks/noise.h"
#include "isa_kernels.h"

VAE_FAST_NAMESPACE_BEGIN

namespace {

// The proposals of a block: made once, read again for every draw.
template <bool kHasPrior> struct Proposals {
  Buffer mu_buffer, distance, h, expm1, first, second, inverse_first, inverse_second;
  const float *mu, *logvar;
  Buffer logvar_buffer;

  template <class Args> VAE_FAST_FN Proposals(const Args& a, const Block& block) {
    Buffer prior_mu_buffer, prior_logvar_buffer;
    mu = read(a.mu, block, mu_buffer);
    logvar = read(a.logvar, block, logvar_buffer);
    const float* prior_mu = kHasPrior ? read(a.prior_mu, block, prior_mu_buffer) : mu;
    const float* prior_logvar = kHasPrior ? read(a.prior_logvar, block, prior_logvar_buffer) : logvar;
    for_each_vector(block.size(), [&](std::int64_t i, int count) VAE_FAST_LAMBDA {
      const auto of = [&](const float* p) VAE_FAST_LAMBDA { return load_partial(p + i, count); };
      const vf32 lv = a.clamp.active ? clamp(of(logvar), a.clamp.low, a.clamp.high) : of(logvar);
      const Proposal<vf32> q = proposal_of<kHasPrior>(of(mu), lv, of(prior_mu), of(prior_logvar));
      store(h.data + i, q.h), store(expm1.data + i, q.expm1);
      store(first.data + i, q.std.first), store(second.data + i, q.std.second);
      if constexpr (kHasPrior) {
        store(distance.data + i, q.distance);
        store(inverse_first.data + i, q.inverse.first), store(inverse_second.data + i, q.inverse.second);
      }
    });
  }

  VAE_FAST_FN Proposal<vf32> at(std::int64_t i, int count) const {
    const auto of = [&](const Buffer& b) VAE_FAST_LAMBDA { return load<vf32>(b.data + i); };
    const Factors<vf32> std{of(first), of(second)};
    if constexpr (kHasPrior)
      return {of(distance), of(h), of(expm1), std, {of(inverse_first), of(inverse_second)}};
    const vf32 one = splat<vf32>(1.0f);
    return {load_partial(mu + i, count), of(h), of(expm1), std, {one, one}};
  }
};

Loss of_draw(Loss loss, std::int64_t draw, const Tiling& tiling) {
  loss.value += draw * loss.draw_stride;
  if (loss.partial) loss.partial += draw * tiling.rows * tiling.column_segments;
  return loss;
}
Upstream of_draw(Upstream upstream, std::int64_t draw) {
  upstream.value += draw * upstream.draw_stride;
  return upstream;
}

template <bool kHasPrior> void forward(const ImportanceForward& a, const Task& task) {
  // A block has whole samples and serves all draws, or a sample has several blocks and each draw goes through all.
  const std::int64_t step = a.tiling.columns <= kBlock ? a.draw_end - a.draw_begin : 1;
  for (std::int64_t begin = a.draw_begin; begin < a.draw_end; begin += step) {
    const Loss first_weights = of_draw(a.weights, begin, a.tiling);
    Losses first_sums(first_weights, a.tiling, task);
    for_each_block(a.tiling, task, [&](const Block& block) {
      Buffer terms, z_buffer;
      NoiseBuffer noise_buffer;
      Prefetcher prefetcher = prefetcher_during_noise(block);
      const Proposals<kHasPrior> proposals(a, block);
      for (std::int64_t draw = begin; draw < begin + step; ++draw) {
        const float* eps = normals(a.noise, a.first_draw + draw, block, noise_buffer, prefetcher);
        const View view = a.z ? a.z.draw(draw) : a.z;
        float* z = a.z ? destination(view, block, z_buffer) : nullptr;
        for_each_vector(block.size(), [&](std::int64_t i, int count) VAE_FAST_LAMBDA {
          const Proposal<vf32> q = proposals.at(i, count);
          const vf32 e = load_partial(eps + i, count);
          store(terms.data + i, log_weight(q, drawn_of<kHasPrior>(q, e), e));
          if (z) store_partial(z + i, fma(e * q.std.first, q.std.second, load_partial(proposals.mu + i, count)), count);
        });
        if (a.z) write(view, block, z);
        if (draw == begin) {
          first_sums.add(block, terms.data);
        } else {
          const Loss weights = of_draw(a.weights, draw, a.tiling);
          Losses(weights, a.tiling, task).add(block, terms.data);
        }
      }
    });
  }
}

template <bool kHasPrior, bool kPath> void backward(const ImportanceBackward& a, const Task& task) {
  const bool wants_prior_mu = kHasPrior && wanted(a.grad_prior_mu), wants_prior_logvar = kHasPrior && wanted(a.grad_prior_logvar);
  const vf32 half = splat<vf32>(0.5f);
  for_each_block(a.tiling, task, [&](const Block& block) {
    Buffer by_mu{}, by_logvar{}, by_prior_mu{}, by_prior_logvar{}, noise_sums{};
    Buffer grad_z_buffer, upstream_buffer;
    NoiseBuffer noise_buffer;
    Prefetcher prefetcher = prefetcher_during_noise(block);
    const Proposals<kHasPrior> proposals(a, block);
    const auto add = [&](Buffer& sum, std::int64_t i, vf32 term) VAE_FAST_LAMBDA {
      store(sum.data + i, load<vf32>(sum.data + i) + term);
    };
    for (std::int64_t draw = 0; draw < a.draws; ++draw) {
      const float* eps = normals(a.noise, a.first_draw + draw, block, noise_buffer, prefetcher);
      const float* grad_z = a.grad_z ? read(a.grad_z.draw(draw), block, grad_z_buffer) : nullptr;
      const float* upstream = a.grad_weights ? read(of_draw(a.grad_weights, draw), block, upstream_buffer) : nullptr;
      for_each_vector(block.size(), [&](std::int64_t i, int count) VAE_FAST_LAMBDA {
        const vf32 e = load_partial(eps + i, count);
        if (!upstream) {
          const vf32 by_z = load_partial(grad_z + i, count);
          add(by_mu, i, by_z);
          return add(noise_sums, i, by_z * e);
        }
        const Proposal<vf32> q = proposals.at(i, count);
        const vf32 g = load_partial(upstream + i, count);
        const WeightSlopes<vf32> s = weight_slopes<kHasPrior, kPath>(q, drawn_of<kHasPrior>(q, e), e);
        const vf32 by_z = grad_z ? load_partial(grad_z + i, count) : vf32{};
        add(by_mu, i, fma(g, s.by_mu, by_z));
        add(by_logvar, i, g * s.by_logvar);
        if (grad_z) add(noise_sums, i, by_z * e);
        if (wants_prior_mu) add(by_prior_mu, i, g * s.by_prior_mu);
        if (wants_prior_logvar) add(by_prior_logvar, i, g * s.by_prior_logvar);
      });
    }
    Buffer grad_logvar_buffer;
    if (a.grad_logvar) {
      float* grad_logvar = destination(a.grad_logvar, block, grad_logvar_buffer);
      for_each_vector(block.size(), [&](std::int64_t i, int count) VAE_FAST_LAMBDA {
        const auto of = [&](const Buffer& b) VAE_FAST_LAMBDA { return load<vf32>(b.data + i); };
        vf32 grad = of(by_logvar);
        if (a.grad_z) grad = grad + half * of(noise_sums) * of(proposals.first) * of(proposals.second);
        if (a.clamp.active) grad = clamp_gradient(grad, load_partial(proposals.logvar + i, count), a.clamp.low, a.clamp.high);
        store_partial(grad_logvar + i, grad, count);
      });
      write(a.grad_logvar, block, grad_logvar);
    }
    if (a.grad_mu) copy_out(a.grad_mu, block, by_mu.data);
    const auto give = [&](const Gradient& gradient, const Buffer& values) {
      // Into the tensor from a buffer, also where it could be written in place.
      if (gradient.reduction == Reduction::none) copy_out(gradient.view, block, values.data);
      else emit(gradient, a.tiling, task, block, values.data);
    };
    if (wants_prior_mu) give(a.grad_prior_mu, by_prior_mu);
    if (wants_prior_logvar) give(a.grad_prior_logvar, by_prior_logvar);
  });
}

}  // namespace

void importance_forward(const ImportanceForward& a, const Task& task) {
  if (a.prior_mu) forward<true>(a, task);
  else forward<false>(a, task);
}

void importance_backward(const ImportanceBackward& a, const Task& task) {
  if (a.prior_mu && a.path_derivative) backward<true, true>(a, task);
  else if (a.prior_mu) backward<true, false>(a, task);
  else if (a.path_derivative) backward<false, true>(a, task);
  else backward<false, false>(a, task);
}

VAE_FAST_NAMESPACE_END
