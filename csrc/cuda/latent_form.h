// The op `latent` on the GPU in any parametrization, with packed priors, soft clamp, shift and scale of z. Kernels of their
// own, so that those of a plain log-variance keep their registers; dense in chunks of 4 elements, or of any strides.
#pragma once

#include "../formulas/gaussian_kl.h"
#include "noise.h"
#include "reduce.h"

namespace vae_fast {
namespace {

constexpr int kFormResident = 2;

template <class A, bool kHasPrior>
__global__ void __launch_bounds__(kThreads, kFormResident)
latent_form_forward(const __grid_constant__ LatentForward a, const __grid_constant__ Grid grid) {
  Place at = place(grid);
  const bool wants_kl = a.kl && at.draw_part == 0;
  NoiseState state = shared_state_of(a.noise);
  for (int step = 0; step < grid.row_steps; ++step, at.row += grid.rows_at_once()) {
    double kl = 0;
    if (const std::int64_t row = at.row; row < at.row_end) {
      if (a.noise.state_per_sample) state = state_of(a.noise, row);
      for_each_chunk<A>(grid, at, [&](auto column, int count) {
        const auto read = [&](const View& v, float (&out)[A::size]) { load<A>(v, start_of<A>(v, row), column, count, out); };
        float mu[A::size], first[A::size], second[A::size], terms[A::size], sum = 0;  // first·second = σ
        float prior_mu[A::size] = {}, prior_raw[A::size] = {};
        read(a.mu, mu);
        read(a.logvar, first);
        if constexpr (kHasPrior) read(a.prior_mu, prior_mu), read(a.prior_logvar, prior_raw);
#pragma unroll
        for (int i = 0; i < A::size; ++i) {
          const Sampled<float> s = sample_of<kHasPrior>(mu[i], first[i], prior_mu[i], prior_raw[i], a.form, a.clamp);
          mu[i] = s.mu, first[i] = s.first, second[i] = s.second, terms[i] = s.term;
          if (i < count) sum += s.term;
        }
        kl += sum;
        if (wants_kl && a.kl.elements) store<A>(a.kl.elements, start_of<A>(a.kl.elements, row), column, count, terms);
        if (!a.z) return;

        float shift[A::size] = {}, scale[A::size];
        if (a.shift) read(a.shift, shift);
        if (a.scale) read(a.scale, scale);
        const std::int64_t begin = at.draw_part * grid.draws_per_part, end = smaller(begin + grid.draws_per_part, a.draws);
        for (std::int64_t draw = begin; draw < end; ++draw) {
          float z[A::size];
          normals<A>(a.noise, state, draw, row, column, count, z);
#pragma unroll
          for (int i = 0; i < A::size; ++i) {
            z[i] = fma(first[i] * z[i], second[i], mu[i]);
            if (a.shift) z[i] = z[i] - shift[i];
            if (a.scale) z[i] = z[i] * scale[i];
          }
          store<A>(a.z, start_of<A>(a.z, row) + draw * a.z.draw_stride, column, count, z);
        }
      });
    }
    if (wants_kl && a.kl.value) reduce_row(a.kl, grid, at, kl);
  }
}

template <class A, bool kHasPrior, bool kSums>
__global__ void __launch_bounds__(kThreads, kFormResident)
latent_form_backward(const __grid_constant__ LatentBackward a, const __grid_constant__ Grid grid) {
  const bool has_grad_z = static_cast<bool>(a.grad_z), has_grad_kl = static_cast<bool>(a.grad_kl);
  const Place at = place(grid);
  NoiseState state = shared_state_of(a.noise);
  double mu_sums[A::size] = {}, raw_sums[A::size] = {};
  for (std::int64_t row = at.row; row < at.row_end; row += grid.rows_at_once()) {
    if (a.noise.state_per_sample) state = state_of(a.noise, row);
    const float of_row = of_sample(a.grad_kl, row);
    for_each_chunk<A>(grid, at, [&](auto column, int count) {
      const auto read = [&](const View& v, float (&out)[A::size]) { load<A>(v, start_of<A>(v, row), column, count, out); };
      // grad_z summed over the draws, and grad_z·eps likewise: all that the draws contribute.
      float by_mu[A::size] = {}, by_raw[A::size] = {};
      for (std::int64_t draw = 0; has_grad_z && draw < a.draws; ++draw) {
        float grad[A::size], eps[A::size] = {};
        load<A>(a.grad_z, start_of<A>(a.grad_z, row) + draw * a.grad_z.draw_stride, column, count, grad);
        if (a.grad_logvar) normals<A>(a.noise, state, draw, row, column, count, eps);
#pragma unroll
        for (int i = 0; i < A::size; ++i) {
          by_mu[i] += grad[i];
          by_raw[i] += grad[i] * eps[i];
        }
      }
      if (a.scale) {
        float scale[A::size];
        read(a.scale, scale);
#pragma unroll
        for (int i = 0; i < A::size; ++i) by_mu[i] *= scale[i], by_raw[i] *= scale[i];
      }
      float mu[A::size], raw[A::size], upstream[A::size], prior_mu[A::size] = {}, prior_raw[A::size] = {};
      read(a.mu, mu);
      read(a.logvar, raw);
      if constexpr (kHasPrior) read(a.prior_mu, prior_mu), read(a.prior_logvar, prior_raw);
      load_upstream<A>(a.grad_kl, of_row, row, column, count, upstream);
#pragma unroll
      for (int i = 0; i < A::size; ++i) {
        const FormGradient<float> g = gradient_of<kHasPrior>(mu[i], raw[i], prior_mu[i], prior_raw[i], a.form, a.clamp, has_grad_z,
                                                             by_mu[i], by_raw[i], has_grad_kl, upstream[i]);
        by_mu[i] = g.mu, by_raw[i] = g.raw, prior_mu[i] = g.prior_mu, prior_raw[i] = g.prior_raw;
      }
      store_gradients<A, kHasPrior, kSums>(a, row, column, count, by_mu, by_raw, prior_mu, prior_raw, mu_sums, raw_sums);
    });
  }
  if constexpr (kSums) {
    reduce_gradient<A>(a.grad_prior_mu, grid, at, 0, mu_sums);
    reduce_gradient<A>(a.grad_prior_logvar, grid, at, 1, raw_sums);
  }
}

}  // namespace
}  // namespace vae_fast
