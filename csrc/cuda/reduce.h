// Sums in one fixed order: within a thread, over the lanes of a warp, over the warps of a block, and over blocks by the
// last of them to finish. No atomic ever adds floats, so the bits are the same from run to run.
//
// The last block takes a ticket to know that it is the last, which saves the second launch that sums of partial sums
// otherwise cost.
#pragma once

#include "memory.h"

namespace vae_fast {

// Whether this block is the last of `blocks` to come here: it then sees all that the others wrote before.
VAE_FAST_DEVICE bool comes_last(std::uint32_t* ticket, std::int64_t blocks) {
  VAE_FAST_SHARED(bool, last);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicInc(ticket, static_cast<unsigned>(blocks - 1)) == blocks - 1;
  __syncthreads();
  __threadfence();
  return last;
}

// The sum over the threads of a row, `lanes` neighbours; every thread of the block calls it and has its row's sum.
VAE_FAST_DEVICE double sum_over_lanes(double value, int lanes) {
  for (int offset = (lanes < kWarp ? lanes : kWarp) / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(0xFFFFFFFFu, value, offset);
  if (lanes <= kWarp) return value;
  VAE_FAST_SHARED(double[kThreads / kWarp], warps);
  __syncthreads();  // the sum before this one has been read
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  const int first = threadIdx.x / lanes * (lanes / kWarp);
  value = warps[first];
  for (int w = 1; w < lanes / kWarp; ++w) value += warps[first + w];
  return value;
}

// The sum of a sample, from what its threads have of it.
VAE_FAST_DEVICE void reduce_row(const Loss& out, const Grid& grid, const Place& at, double value, std::int64_t draw = 0) {
  value = sum_over_lanes(value, grid.lanes());
  const bool first = (threadIdx.x & (grid.lanes() - 1)) == 0 && at.row < at.row_end;
  if (grid.segments > 1) {  // then the row has this block, and others, for itself
    const std::int64_t row = draw * grid.rows + at.row;
    double* partial = out.partial + row * grid.segments;
    if (first) partial[at.segment] = value;
    if (!comes_last(grid.tickets + row, grid.segments)) return;
    value = 0;
    for (std::int64_t s = threadIdx.x; s < grid.segments; s += kThreads) value += __ldcg(partial + s);
    value = sum_over_lanes(value, kThreads);
  }
  if (first) out.value[at.row * out.stride + draw * out.draw_stride] = static_cast<float>(value);
}

// The sums over the threads with the same chunk, which are `lanes` apart; the first of them have the result.
template <int kSize> VAE_FAST_DEVICE void sum_over_rows(double (&value)[kSize], int lanes) {
  VAE_FAST_SHARED(double[kSize][kThreads], shared);
  __syncthreads();  // the sum before this one has been read
#pragma unroll
  for (int i = 0; i < kSize; ++i) shared[i][threadIdx.x] = value[i];
  for (int half = kThreads / 2; half >= lanes; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half)
#pragma unroll
      for (int i = 0; i < kSize; ++i) shared[i][threadIdx.x] += shared[i][threadIdx.x + half];
  }
#pragma unroll
  for (int i = 0; i < kSize; ++i) value[i] = shared[i][threadIdx.x];
}

// A chunk of a gradient: into its tensor, or onto this thread's sum. A sum over draws is in the tensor, and this thread's;
// a kernel with the other sums has no registers left for it.
template <class A, bool kSums, bool kDraws = false>
VAE_FAST_DEVICE void emit(const Gradient& gradient, RowStart<A> start, Column<A> column, int count, const float (&value)[A::size],
                          double (&sum)[A::size], std::int64_t draw = 0) {
  if (!gradient.view) return;
  if constexpr (kSums) {
    if (A::plain ? gradient.reduction != Reduction::none : gradient.reduction >= Reduction::batch) {
#pragma unroll
      for (int i = 0; i < A::size; ++i)
        if (i < count) sum[i] += value[i];
      return;
    }
  }
  if constexpr (kDraws && !kSums) {
    float total[A::size];
#pragma unroll
    for (int i = 0; i < A::size; ++i) total[i] = -0.0f;  // which an addition leaves out
    if (draw > 0 && gradient.reduction == Reduction::draws) load<A>(gradient.view, start, column, count, total);
#pragma unroll
    for (int i = 0; i < A::size; ++i) total[i] += value[i];
    store<A>(gradient.view, start, column, count, total);
  } else {
    store<A>(gradient.view, start, column, count, value);
  }
}

// A chunk's gradients of a Gaussian and its prior; those of a prior that is summed go to the sums.
template <class A, bool kHasPrior, bool kSums, class Args>
VAE_FAST_DEVICE void store_gradients(const Args& a, std::int64_t row, Column<A> column, int count, const float (&mu)[A::size],
                                     const float (&raw)[A::size], const float (&prior_mu)[A::size],
                                     const float (&prior_raw)[A::size], double (&mu_sums)[A::size], double (&raw_sums)[A::size]) {
  if (A::plain || a.grad_mu) store<A>(a.grad_mu, start_of<A>(a.grad_mu, row), column, count, mu);
  if (A::plain || a.grad_logvar) store<A>(a.grad_logvar, start_of<A>(a.grad_logvar, row), column, count, raw);
  if constexpr (kHasPrior) {
    emit<A, kSums>(a.grad_prior_mu, start_of<A>(a.grad_prior_mu.view, row), column, count, prior_mu, mu_sums);
    emit<A, kSums>(a.grad_prior_logvar, start_of<A>(a.grad_prior_logvar.view, row), column, count, prior_raw, raw_sums);
  }
}

// A gradient summed over the batch or over everything, from each thread's sum over its rows; `index` is that of the
// gradient among those of the launch. Each has segments + 1 tickets.
template <class A>
VAE_FAST_DEVICE void reduce_gradient(const Gradient& gradient, const Grid& grid, const Place& at, int index, double (&value)[A::size]) {
  constexpr int size = A::size;
  if (!gradient.view || (A::plain ? gradient.reduction == Reduction::none : gradient.reduction < Reduction::batch)) return;
  float* out = reinterpret_cast<float*>(gradient.view.data);
  std::uint32_t* tickets = grid.tickets + index * (grid.segments + 1);

  if (gradient.reduction == Reduction::batch) {
    const bool first = static_cast<int>(threadIdx.x) < grid.lanes() && at.chunk < at.chunk_end;
    sum_over_rows(value, grid.lanes());
    if (grid.row_tiles > 1) {
      const std::int64_t width = grid.chunks * size;
      double* partial = gradient.partial + at.chunk * size;
      if (first)
#pragma unroll
        for (int i = 0; i < size; ++i) partial[at.row_tile * width + i] = value[i];
      if (!comes_last(tickets + at.segment, grid.row_tiles)) return;
#pragma unroll
      for (int i = 0; i < size; ++i) value[i] = 0;
      if (at.chunk < at.chunk_end)
        for (std::int64_t tile = threadIdx.x >> grid.lane_bits; tile < grid.row_tiles; tile += grid.rows_at_once())
#pragma unroll
          for (int i = 0; i < size; ++i) value[i] += __ldcg(partial + tile * width + i);
      sum_over_rows(value, grid.lanes());
    }
    const std::int64_t column = column_of<A>(grid, at.chunk);
#pragma unroll
    for (int i = 0; i < size; ++i)
      if (first && column + i < grid.columns) out[column + i] = static_cast<float>(value[i]);
    return;
  }

  double total = 0;
#pragma unroll
  for (int i = 0; i < size; ++i) total += value[i];
  total = sum_over_lanes(total, kThreads);
  if (grid.blocks() > 1) {
    if (threadIdx.x == 0) gradient.partial[blockIdx.x] = total;
    if (!comes_last(tickets + grid.segments, grid.blocks())) return;
    total = 0;
    for (std::int64_t block = threadIdx.x; block < grid.blocks(); block += kThreads) total += __ldcg(gradient.partial + block);
    total = sum_over_lanes(total, kThreads);
  }
  if (threadIdx.x == 0) *out = static_cast<float>(total);
}

// ---- on the host: the memory that blocks share ----

inline void share(Loss& sum, Grid& grid, const Allocate& allocate, std::int64_t draws = 1) {
  if (!sum.value || grid.segments == 1) return;
  const Scratch scratch = allocate(draws * grid.rows * grid.segments, draws * grid.rows);
  sum.partial = scratch.partials;
  grid.tickets = scratch.tickets;
}

inline bool is_sum(const Gradient& g) { return g.view && g.reduction >= Reduction::batch; }

template <std::size_t n> bool any_sum(Gradient* const (&gradients)[n]) {
  return std::any_of(gradients, gradients + n, [](const Gradient* g) { return is_sum(*g); });
}

// The gradient's tensor where the kernel writes to it element by element.
inline const View* per_element(const Gradient& g) {
  static const View absent{};
  return is_sum(g) ? &absent : &g.view;
}

template <std::size_t n> void share(Gradient* const (&gradients)[n], Grid& grid, int chunk_size, const Allocate& allocate) {
  std::int64_t begin[n + 1] = {};
  for (std::size_t i = 0; i < n; ++i) {
    const Gradient& g = *gradients[i];
    begin[i + 1] = begin[i];
    if (is_sum(g) && g.reduction == Reduction::batch && grid.row_tiles > 1) begin[i + 1] += grid.row_tiles * grid.chunks * chunk_size;
    if (is_sum(g) && g.reduction == Reduction::all && grid.blocks() > 1) begin[i + 1] += grid.blocks();
  }
  if (begin[n] == 0) return;
  const Scratch scratch = allocate(begin[n], n * (grid.segments + 1));
  grid.tickets = scratch.tickets;
  for (std::size_t i = 0; i < n; ++i) gradients[i]->partial = scratch.partials + begin[i];
}

}  // namespace vae_fast
