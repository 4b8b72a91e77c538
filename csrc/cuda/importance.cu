// The op `importance` on the GPU: one launch forward, one backward; eps is made in registers both times, never stored.
// Kernels have chunks of 4 elements, dense or of any strides.
#include "../formulas/gaussian_kl.h"
#include "../formulas/importance.h"
#include "noise.h"
#include "reduce.h"

namespace vae_fast {
namespace {

constexpr int kDrawsAtOnce = 4;  // of a chunk, which is loaded once for them
// Blocks that share a processor; a second one of sums over any strides would spill 20 bytes on sm_80.
template <class A, bool kSums = false> constexpr int kImportanceResident = kSums && !A::dense ? 1 : 2;

// The proposals of a chunk, and its mu.
template <class A, bool kHasPrior, class Args>
VAE_FAST_DEVICE void load_proposals(const Args& a, std::int64_t row, Column<A> column, int count, float (&mu)[A::size],
                                    float (&logvar)[A::size], Proposal<float> (&q)[A::size]) {
  const auto read = [&](const View& v, float (&out)[A::size]) { load<A>(v, start_of<A>(v, row), column, count, out); };
  float prior_mu[A::size] = {}, prior_logvar[A::size] = {};
  read(a.mu, mu);
  read(a.logvar, logvar);
  if constexpr (kHasPrior) read(a.prior_mu, prior_mu), read(a.prior_logvar, prior_logvar);
#pragma unroll
  for (int i = 0; i < A::size; ++i) {
    const float lv = a.clamp.active ? clamp(logvar[i], a.clamp.low, a.clamp.high) : logvar[i];
    q[i] = proposal_of<kHasPrior>(mu[i], lv, prior_mu[i], prior_logvar[i]);
  }
}

template <class A, bool kHasPrior>
__global__ void __launch_bounds__(kThreads, kImportanceResident<A>)
importance_forward(const __grid_constant__ ImportanceForward a, const __grid_constant__ Grid grid) {
  Place at = place(grid);
  NoiseState state = shared_state_of(a.noise);
  const std::int64_t first = at.draw_part * grid.draws_per_part, last = smaller(first + grid.draws_per_part, a.draws);
  for (int step = 0; step < grid.row_steps; ++step, at.row += grid.rows_at_once()) {
    const std::int64_t row = at.row;
    if (a.noise.state_per_sample && row < at.row_end) state = state_of(a.noise, row);
    for (std::int64_t begin = first; begin < last; begin += kDrawsAtOnce) {
      const int some = static_cast<int>(smaller(kDrawsAtOnce, last - begin));
      double sums[kDrawsAtOnce] = {};
      if (row < at.row_end) {
        for_each_chunk<A>(grid, at, [&](auto column, int count) {
          float mu[A::size], logvar[A::size];
          Proposal<float> q[A::size];
          load_proposals<A, kHasPrior>(a, row, column, count, mu, logvar, q);
#pragma unroll
          for (int k = 0; k < kDrawsAtOnce; ++k) {
            if (k >= some) break;
            float eps[A::size], sum = 0;
            normals<A>(a.noise, state, a.first_draw + begin + k, row, column, count, eps);
#pragma unroll
            for (int i = 0; i < A::size; ++i) {
              const float weight = log_weight(q[i], drawn_of<kHasPrior>(q[i], eps[i]), eps[i]);
              if (i < count) sum += weight;
              eps[i] = fma(q[i].std.first * eps[i], q[i].std.second, mu[i]);
            }
            sums[k] += sum;
            if (a.z) store<A>(a.z, start_of<A>(a.z, row, begin + k), column, count, eps);
          }
        });
      }
#pragma unroll
      for (int k = 0; k < kDrawsAtOnce; ++k)
        if (k < some) reduce_row(a.weights, grid, at, sums[k], begin + k);
    }
  }
}

template <class A, bool kHasPrior, bool kSums>
__global__ void __launch_bounds__(kThreads, kImportanceResident<A, kSums>)
importance_backward(const __grid_constant__ ImportanceBackward a, const __grid_constant__ Grid grid) {
  const bool has_grad_z = static_cast<bool>(a.grad_z), has_weights = static_cast<bool>(a.grad_weights);
  const Place at = place(grid);
  NoiseState state = shared_state_of(a.noise);
  double mu_sums[A::size] = {}, logvar_sums[A::size] = {};
  for (std::int64_t row = at.row; row < at.row_end; row += grid.rows_at_once()) {
    if (a.noise.state_per_sample) state = state_of(a.noise, row);
    for_each_chunk<A>(grid, at, [&](auto column, int count) {
      float mu[A::size], logvar[A::size];
      Proposal<float> q[A::size];
      load_proposals<A, kHasPrior>(a, row, column, count, mu, logvar, q);
      float by_mu[A::size] = {}, by_logvar[A::size] = {}, by_prior_mu[A::size] = {}, by_prior_logvar[A::size] = {};
#pragma unroll 1
      for (int draw = 0; draw < static_cast<int>(a.draws); ++draw) {
        float eps[A::size], grad[A::size] = {};
        normals<A>(a.noise, state, a.first_draw + draw, row, column, count, eps);
        if (has_grad_z) load<A>(a.grad_z, start_of<A>(a.grad_z, row, draw), column, count, grad);
        const float g = of_sample(a.grad_weights, row, draw);
#pragma unroll
        for (int i = 0; i < A::size; ++i) {
          if (has_grad_z) {  // selected, not multiplied by zero: σ may be infinite
            by_mu[i] += grad[i];
            by_logvar[i] += 0.5f * grad[i] * eps[i] * q[i].std.first * q[i].std.second;
          }
          if (!has_weights) continue;
          const Drawn<float> z = drawn_of<kHasPrior>(q[i], eps[i]);
          const WeightSlopes<float> s = a.path_derivative ? weight_slopes<kHasPrior, true>(q[i], z, eps[i])
                                                          : weight_slopes<kHasPrior, false>(q[i], z, eps[i]);
          by_mu[i] = fma(g, s.by_mu, by_mu[i]);
          by_logvar[i] += g * s.by_logvar;
          if constexpr (kHasPrior) by_prior_mu[i] += g * s.by_prior_mu, by_prior_logvar[i] += g * s.by_prior_logvar;
        }
      }
      if (a.clamp.active) {
        load<A>(a.logvar, start_of<A>(a.logvar, row), column, count, logvar);  // kept, it would be registers too many
#pragma unroll
        for (int i = 0; i < A::size; ++i) by_logvar[i] = clamp_gradient(by_logvar[i], logvar[i], a.clamp.low, a.clamp.high);
      }
      store_gradients<A, kHasPrior, kSums>(a, row, column, count, by_mu, by_logvar, by_prior_mu, by_prior_logvar, mu_sums, logvar_sums);
    });
  }
  if constexpr (kSums) {
    reduce_gradient<A>(a.grad_prior_mu, grid, at, 0, mu_sums);
    reduce_gradient<A>(a.grad_prior_logvar, grid, at, 1, logvar_sums);
  }
}

template <class Body> void with_four_elements(AccessKind kind, Body body) {
  if (kind == AccessKind::narrow) return body(Narrow{});
  body(Any{});
}

}  // namespace

void run(ImportanceForward a, const Stream& stream, const Allocate& allocate) {
  const std::int64_t rows = a.tiling.rows, columns = a.tiling.columns;
  if (rows == 0) return;
  const View* const views[] = {&a.mu, &a.logvar, &a.prior_mu, &a.prior_logvar, &a.noise.given, &a.z};
  const AccessKind kind = choose_access(views, rows, columns, a.draws, {false, false});
  Grid grid = tile_rows(rows, columns, chunk_size(kind), a.draws);
  follow_memory(grid, kind, views);
  share(a.weights, grid, allocate, a.draws);
  const auto run_kernel = [&](auto kernel) { launch("importance_forward", kernel, stream, grid.blocks(), kThreads, a, grid); };
  with_four_elements(kind, [&](auto access) {
    if (a.prior_mu) run_kernel(importance_forward<decltype(access), true>);
    else run_kernel(importance_forward<decltype(access), false>);
  });
}

void run(ImportanceBackward a, const Stream& stream, const Allocate& allocate) {
  const std::int64_t rows = a.tiling.rows, columns = a.tiling.columns;
  Gradient* const summed[] = {&a.grad_prior_mu, &a.grad_prior_logvar};
  const bool sums = any_sum(summed);
  if (rows * columns == 0 && !sums) return;
  const View* const views[] = {&a.mu, &a.logvar, &a.prior_mu, &a.prior_logvar, &a.noise.given, &a.grad_z, &a.grad_mu,
                               &a.grad_logvar, per_element(a.grad_prior_mu), per_element(a.grad_prior_logvar)};
  const AccessKind kind = choose_access(views, rows, columns, a.draws, {false, false});
  Grid grid = sums ? tile_columns(rows, columns, chunk_size(kind)) : tile_rows(rows, columns, chunk_size(kind));
  follow_memory(grid, kind, views);
  if (sums) share(summed, grid, chunk_size(kind), allocate);
  const auto run_kernel = [&](auto kernel) { launch("importance_backward", kernel, stream, grid.blocks(), kThreads, a, grid); };
  with_four_elements(kind, [&](auto access) {
    if (sums) run_kernel(importance_backward<decltype(access), true, true>);
    else if (a.prior_mu) run_kernel(importance_backward<decltype(access), true, false>);
    else run_kernel(importance_backward<decltype(access), false, false>);
  });
}

}  // namespace vae_fast
