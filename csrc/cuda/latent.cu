// The op `latent` on the GPU: one launch forward, one backward; eps is made in registers both times, never stored.
#include "latent_form.h"

namespace vae_fast {
namespace {

// Blocks that share a processor: what its registers allow without spilling.
template <class A, bool kHasPrior, bool kSums = false>
constexpr int kResident = (A::plain && !kSums) || (A::dense && A::size == 4 && !kHasPrior) ? 3 : 2;

// One branch a chunk, so that a launch without bounds pays nothing for them.
template <int kSize> VAE_FAST_DEVICE void apply(const Clamp& c, float (&logvar)[kSize]) {
  if (!c.active) return;
#pragma unroll
  for (int i = 0; i < kSize; ++i) logvar[i] = clamp(logvar[i], c.low, c.high);
}

template <class A, bool kHasPrior>
__global__ void __launch_bounds__(kThreads, kResident<A, kHasPrior>)
latent_forward(const __grid_constant__ LatentForward a, const __grid_constant__ Grid grid) {
  using F = Arithmetic<A>;
  Place at = place(grid);
  const bool wants_kl = a.kl && at.draw_part == 0;
  NoiseState state = shared_state_of(a.noise);
  for (int step = 0; step < grid.row_steps; ++step, at.row += grid.rows_at_once()) {
    double kl = 0;
    if (const std::int64_t row = at.row; row < at.row_end) {
      if (!A::plain && a.noise.state_per_sample) state = state_of(a.noise, row);
      const auto in_mu = start_of<A>(a.mu, row), in_logvar = start_of<A>(a.logvar, row), in_z = start_of<A>(a.z, row);
      RowStart<A> in_prior_mu{}, in_prior_logvar{};
      if constexpr (kHasPrior) in_prior_mu = start_of<A>(a.prior_mu, row), in_prior_logvar = start_of<A>(a.prior_logvar, row);
      for_each_chunk<A>(grid, at, [&](auto column, int count) {
        const Raw<A> raw_mu = load_raw<A>(a.mu, in_mu, column, count);
        const Raw<A> raw_logvar = load_raw<A>(a.logvar, in_logvar, column, count);
        [[maybe_unused]] float prior_mu[A::size], prior_logvar[A::size];
        if constexpr (kHasPrior) {
          const Raw<A> raw = load_raw<A>(a.prior_mu, in_prior_mu, column, count);
          load<A>(a.prior_logvar, in_prior_logvar, column, count, prior_logvar);
          unpack<A>(a.prior_mu, raw, prior_mu);
        }
        float mu[A::size], first[A::size], second[A::size], terms[A::size], sum = 0;  // first·second = exp(logvar/2)
        unpack<A>(a.mu, raw_mu, mu);
        unpack<A>(a.logvar, raw_logvar, first);
        apply(a.clamp, first);
#pragma unroll
        for (int i = 0; i < A::size; ++i) {
          const float logvar = first[i];
          const auto e = exponential_of_logvar<F>(logvar);
          first[i] = value(e.first);
          second[i] = value(e.second);
          if constexpr (kHasPrior) terms[i] = divergence(mu[i], logvar, prior_mu[i], prior_logvar[i]).value;
          else terms[i] = value(divergence(F(mu[i]), e));
          if (i < count) sum += terms[i];
        }
        kl += sum;
        if constexpr (!A::plain)
          if (wants_kl && a.kl.elements) store<A>(a.kl.elements, start_of<A>(a.kl.elements, row), column, count, terms);

        const auto sample = [&](std::int64_t draw) {
          float z[A::size];
          normals<A>(a.noise, state, draw, row, column, count, z);
#pragma unroll
          for (int i = 0; i < A::size; ++i) z[i] = fma(first[i] * z[i], second[i], mu[i]);
          store<A>(a.z, in_z + (A::plain ? 0 : draw * a.z.draw_stride), column, count, z);
        };
        if constexpr (A::plain) {
          sample(0);
        } else if (a.z) {
          const std::int64_t begin = at.draw_part * grid.draws_per_part, end = smaller(begin + grid.draws_per_part, a.draws);
          for (std::int64_t draw = begin; draw < end; ++draw) sample(draw);
        }
      });
    }
    if (A::plain || (wants_kl && a.kl.value)) reduce_row(a.kl, grid, at, kl);
  }
}

template <class A, bool kHasPrior, bool kSums>
__global__ void __launch_bounds__(kThreads, kResident<A, kHasPrior, kSums>)
latent_backward(const __grid_constant__ LatentBackward a, const __grid_constant__ Grid grid) {
  using F = Arithmetic<A>;
  const bool has_grad_z = A::plain || a.grad_z, has_grad_kl = A::plain || a.grad_kl;
  const Place at = place(grid);
  NoiseState state = shared_state_of(a.noise);
  double mu_sums[A::size] = {}, logvar_sums[A::size] = {};
  for (std::int64_t row = at.row; row < at.row_end; row += grid.rows_at_once()) {
    if (!A::plain && a.noise.state_per_sample) state = state_of(a.noise, row);
    const float of_row = of_sample(a.grad_kl, row);
    // Of the other tensors the starts are computed for every chunk: they would be registers too many.
    const auto in_mu = start_of<A>(a.mu, row), in_logvar = start_of<A>(a.logvar, row), in_grad_z = start_of<A>(a.grad_z, row);
    for_each_chunk<A>(grid, at, [&](auto column, int count) {
      const Raw<A> raw_logvar = load_raw<A>(a.logvar, in_logvar, column, count);

      // grad_z summed over the draws, and grad_z·eps likewise: all that the draws contribute.
      float by_mu[A::size] = {}, by_logvar[A::size] = {};
      const auto add_draw = [&](std::int64_t draw) {
        const Raw<A> raw = load_raw<A>(a.grad_z, in_grad_z + (A::plain ? 0 : draw * a.grad_z.draw_stride), column, count);
        float grad[A::size], eps[A::size] = {};
        if (A::plain || a.grad_logvar) normals<A>(a.noise, state, draw, row, column, count, eps);
        unpack<A>(a.grad_z, raw, grad);
#pragma unroll
        for (int i = 0; i < A::size; ++i) {
          by_mu[i] += grad[i];
          by_logvar[i] += grad[i] * eps[i];
        }
      };
      Raw<A> raw_mu = {};
      if constexpr (A::plain) {
        raw_mu = load_raw<A>(a.mu, in_mu, column, count);
        add_draw(0);
      } else {
        for (std::int64_t draw = 0; a.grad_z && draw < a.draws; ++draw) add_draw(draw);
        if (a.grad_kl) raw_mu = load_raw<A>(a.mu, in_mu, column, count);
      }
      float mu[A::size], logvar[A::size];
      [[maybe_unused]] float prior_mu[A::size], prior_logvar[A::size];
      unpack<A>(a.mu, raw_mu, mu);
      unpack<A>(a.logvar, raw_logvar, logvar);
      if constexpr (kHasPrior) {
        const Raw<A> raw = load_raw<A>(a.prior_mu, start_of<A>(a.prior_mu, row), column, count);
        load<A>(a.prior_logvar, start_of<A>(a.prior_logvar, row), column, count, prior_logvar);
        unpack<A>(a.prior_mu, raw, prior_mu);
      }
      apply(a.clamp, logvar);
      float upstream[A::size];
      load_upstream<A>(a.grad_kl, of_row, row, column, count, upstream);
#pragma unroll
      for (int i = 0; i < A::size; ++i) {
        const auto e = exponential_of_logvar<F>(logvar[i]);
        // Selected, not multiplied by zero: what does not count may be infinite.
        by_logvar[i] = has_grad_z ? 0.5f * by_logvar[i] * value(e.first) * value(e.second) : 0.0f;
        if constexpr (kHasPrior) {
          const PriorDivergence<float> d = divergence(mu[i], logvar[i], prior_mu[i], prior_logvar[i]);
          by_mu[i] = has_grad_kl ? fma(upstream[i], d.by_mu, by_mu[i]) : by_mu[i];
          by_logvar[i] = has_grad_kl ? fma(upstream[i], d.by_logvar, by_logvar[i]) : by_logvar[i];
          prior_mu[i] = has_grad_kl ? -(upstream[i] * d.by_mu) : 0.0f;
          prior_logvar[i] = has_grad_kl ? upstream[i] * d.by_prior_logvar : 0.0f;
        } else if (has_grad_kl) {
          by_mu[i] = fma(upstream[i], mu[i], by_mu[i]);
          by_logvar[i] = fma(upstream[i], value(e.half_expm1), by_logvar[i]);
        }
      }
      if (a.clamp.active) {
        unpack<A>(a.logvar, raw_logvar, logvar);  // as it was
#pragma unroll
        for (int i = 0; i < A::size; ++i) by_logvar[i] = clamp_gradient(by_logvar[i], logvar[i], a.clamp.low, a.clamp.high);
      }

      store_gradients<A, kHasPrior, kSums>(a, row, column, count, by_mu, by_logvar, prior_mu, prior_logvar, mu_sums, logvar_sums);
    });
  }
  if constexpr (kSums) {
    reduce_gradient<A>(a.grad_prior_mu, grid, at, 0, mu_sums);
    reduce_gradient<A>(a.grad_prior_logvar, grid, at, 1, logvar_sums);
  }
}

// The accesses of latent_form.h.
template <class Body> void with_access_of_form(AccessKind kind, Body body) {
  if (kind == AccessKind::narrow) return body(Narrow{});
  body(Any{});
}

}  // namespace

void run(LatentForward a, const Stream& stream, const Allocate& allocate) {
  const std::int64_t rows = a.tiling.rows, columns = a.tiling.columns;
  if (rows == 0) return;
  const View* const views[] = {&a.mu, &a.logvar, &a.prior_mu, &a.prior_logvar, &a.noise.given, &a.z, &a.kl.elements,
                               &a.shift, &a.scale};
  const bool prior = a.kl && a.prior_mu, form = !a.form.is_plain() || a.shift || a.scale;
  const bool plain = !form && a.draws == 1 && a.z && a.kl.value && is_plain(a.noise);
  const AccessKind kind = choose_access(views, rows, columns, a.draws, {plain, !prior && !form});
  Grid grid = tile_rows(rows, columns, chunk_size(kind), a.draws);
  follow_memory(grid, kind, views);
  share(a.kl, grid, allocate);
  const auto run_kernel = [&](auto kernel) { launch("latent_forward", kernel, stream, grid.blocks(), kThreads, a, grid); };
  if (form && prior) with_access_of_form(kind, [&](auto access) { run_kernel(latent_form_forward<decltype(access), true>); });
  else if (form) with_access_of_form(kind, [&](auto access) { run_kernel(latent_form_forward<decltype(access), false>); });
  else if (prior) with_access<false>(kind, [&](auto access) { run_kernel(latent_forward<decltype(access), true>); });
  else with_access<true>(kind, [&](auto access) { run_kernel(latent_forward<decltype(access), false>); });
}

void run(LatentBackward a, const Stream& stream, const Allocate& allocate) {
  const std::int64_t rows = a.tiling.rows, columns = a.tiling.columns;
  Gradient* const summed[] = {&a.grad_prior_mu, &a.grad_prior_logvar};
  const bool sums = any_sum(summed), prior = a.prior_mu && (a.grad_kl || a.grad_prior_mu.view || a.grad_prior_logvar.view);
  if (rows * columns == 0 && !sums) return;
  const View* const views[] = {&a.mu, &a.logvar, &a.prior_mu, &a.prior_logvar, &a.noise.given, &a.grad_z, &a.grad_mu,
                               &a.grad_logvar, per_element(a.grad_prior_mu), per_element(a.grad_prior_logvar),
                               &a.grad_kl.elements, &a.scale};
  const bool form = !a.form.is_plain() || a.scale;
  const bool plain = !form && a.draws == 1 && a.grad_z && a.grad_kl.value && a.grad_mu && a.grad_logvar && is_plain(a.noise);
  const AccessKind kind = choose_access(views, rows, columns, a.draws, {plain, !prior && !sums && !form});
  Grid grid = sums ? tile_columns(rows, columns, chunk_size(kind)) : tile_rows(rows, columns, chunk_size(kind));
  follow_memory(grid, kind, views);
  if (sums) share(summed, grid, chunk_size(kind), allocate);
  const auto run_kernel = [&](auto kernel) { launch("latent_backward", kernel, stream, grid.blocks(), kThreads, a, grid); };
  const auto run_form = [&](auto has_prior, auto has_sums) {
    with_access_of_form(kind, [&](auto access) { run_kernel(latent_form_backward<decltype(access), has_prior(), has_sums()>); });
  };
  if (form && sums) run_form(std::true_type{}, std::true_type{});
  else if (form && prior) run_form(std::true_type{}, std::false_type{});
  else if (form) run_form(std::false_type{}, std::false_type{});
  else if (sums) with_access<false>(kind, [&](auto access) { run_kernel(latent_backward<decltype(access), true, true>); });
  else if (prior) with_access<false>(kind, [&](auto access) { run_kernel(latent_backward<decltype(access), true, false>); });
  else with_access<true>(kind, [&](auto access) { run_kernel(latent_backward<decltype(access), false, false>); });
}

}  // namespace vae_fast
