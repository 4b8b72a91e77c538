// The op `likelihood` on the GPU: one launch forward, one backward that recomputes from the parameters and the target.
//
// Taking the gradient in the forward pass instead would store N elements there, and where the loss is not simply the
// sum or mean of all samples, read and write them once more to scale by grad_nll: 2N read, N written, then N read, N
// written. Recomputing reads 2N in each pass and writes N: as many bytes, N elements less held until backward, and no
// work for a forward pass without gradients. (For a mean-reduced loss a gradient scaled in the forward pass would save
// 2N of 5N, but what arrives from above is only known in the backward pass.)
#include "../common/likelihood.h"
#include "reduce.h"

namespace vae_fast {
namespace {

// Blocks that share a processor: what its registers allow without spilling.
template <class A, bool kSums> constexpr int kResident = kSums ? 2 : A::dense && A::size == 4 ? 4 : 3;

template <class A, class Member, class Args>
VAE_FAST_DEVICE void load_all(const Args& a, std::int64_t row, std::int64_t column, int count,
                              float (&parameters)[Member::parameters][A::size], float (&target)[A::size]) {
  Raw<A> raw[Member::parameters];
#pragma unroll
  for (int p = 0; p < Member::parameters; ++p)
    raw[p] = fetch<A>(a.parameters[p], row * a.parameters[p].row_stride, column, count);
  load<A>(a.target, row * a.target.row_stride, column, count, target);
#pragma unroll
  for (int p = 0; p < Member::parameters; ++p) unpack<A>(a.parameters[p], raw[p], parameters[p]);
}

template <class A, class Member>
__global__ void __launch_bounds__(kThreads, kResident<A, false>)
likelihood_forward(const __grid_constant__ LikelihoodForward a, const __grid_constant__ Grid grid) {
  const Place at = place(grid);
  double nll = 0;
  if (const std::int64_t row = at.row; row < at.row_end) {
    for (std::int64_t chunk = at.chunk; chunk < at.chunk_end; chunk += grid.lanes()) {
      const std::int64_t column = column_of<A::size>(grid, chunk);
      const int count = count_of<A>(grid, column);
      float parameters[Member::parameters][A::size], target[A::size], sum = 0;
      load_all<A, Member>(a, row, column, count, parameters, target);
#pragma unroll
      for (int i = 0; i < A::size; ++i) {
        float of_element[Member::parameters];
#pragma unroll
        for (int p = 0; p < Member::parameters; ++p) of_element[p] = parameters[p][i];
        const float term = Member::nll(of_element, target[i]);
        if (i < count) sum += term;
      }
      nll += sum;
    }
  }
  reduce_row(a.nll, grid, at, nll);
}

template <class A, class Member, bool kSums>
__global__ void __launch_bounds__(kThreads, kResident<A, kSums>)
likelihood_backward(const __grid_constant__ LikelihoodBackward a, const __grid_constant__ Grid grid) {
  const Place at = place(grid);
  double sums[Member::parameters][A::size] = {};
  for (std::int64_t row = at.row; row < at.row_end; row = kSums ? row + grid.rows_at_once() : at.row_end) {
    const float upstream = a.grad_nll[row * a.grad_nll_stride];
    for (std::int64_t chunk = at.chunk; chunk < at.chunk_end; chunk += grid.lanes()) {
      const std::int64_t column = column_of<A::size>(grid, chunk);
      const int count = count_of<A>(grid, column);
      float parameters[Member::parameters][A::size], target[A::size];
      load_all<A, Member>(a, row, column, count, parameters, target);
#pragma unroll
      for (int i = 0; i < A::size; ++i) {
        float of_element[Member::parameters], by[Member::parameters];
#pragma unroll
        for (int p = 0; p < Member::parameters; ++p) of_element[p] = parameters[p][i];
        Member::gradient(of_element, target[i], by);
#pragma unroll
        for (int p = 0; p < Member::parameters; ++p) parameters[p][i] = upstream * by[p];
      }
#pragma unroll
      for (int p = 0; p < Member::parameters; ++p) emit<A, kSums>(a.gradients[p], row, column, count, parameters[p], sums[p]);
    }
  }
  if constexpr (kSums) {
#pragma unroll
    for (int p = 0; p < Member::parameters; ++p) reduce_gradient<A>(a.gradients[p], grid, at, p, sums[p]);
  }
}

// The member's kernel for an access, by the member's number.
template <class A> auto forward_kernel(int member) {
#define VAE_FAST_FORWARD(Member) likelihood_forward<A, Member>,
  void (*const kernels[])(LikelihoodForward, Grid) = {VAE_FAST_LIKELIHOODS(VAE_FAST_FORWARD)};
  return kernels[member];
}
template <class A, bool kSums> auto backward_kernel(int member) {
#define VAE_FAST_BACKWARD(Member) likelihood_backward<A, Member, kSums>,
  void (*const kernels[])(LikelihoodBackward, Grid) = {VAE_FAST_LIKELIHOODS(VAE_FAST_BACKWARD)};
  return kernels[member];
}

}  // namespace

void run(LikelihoodForward a, std::int64_t rows, std::int64_t columns, const Stream& stream, const Allocate& allocate) {
  if (rows == 0) return;
  const View* const views[] = {&a.parameters[0], &a.parameters[1], &a.parameters[2], &a.target};
  const AccessKind kind = choose_access(views, rows, columns, 1);
  Grid grid = tile_rows(rows, columns, chunk_size(kind));
  follow_memory(grid, kind, views);
  share(a.nll, grid, allocate);
  with_access(kind, [&](auto access) {
    launch("likelihood_forward", forward_kernel<decltype(access)>(a.member), stream, grid.blocks(), kThreads, a, grid);
  });
}

void run(LikelihoodBackward a, std::int64_t rows, std::int64_t columns, const Stream& stream, const Allocate& allocate) {
  Gradient* const summed[] = {&a.gradients[0], &a.gradients[1], &a.gradients[2]};
  const bool sums = any_sum(summed);
  if (rows * columns == 0 && !sums) return;
  const View* const views[] = {&a.parameters[0], &a.parameters[1], &a.parameters[2], &a.target, per_element(a.gradients[0]),
                               per_element(a.gradients[1]), per_element(a.gradients[2])};
  const AccessKind kind = choose_access(views, rows, columns, 1, !sums);
  Grid grid = sums ? tile_columns(rows, columns, chunk_size(kind)) : tile_rows(rows, columns, chunk_size(kind));
  follow_memory(grid, kind, views);
  if (sums) share(summed, grid, chunk_size(kind), allocate);
  const auto run_kernel = [&](auto kernel) { launch("likelihood_backward", kernel, stream, grid.blocks(), kThreads, a, grid); };
  if (sums) with_narrow_access(kind, [&](auto access) { run_kernel(backward_kernel<decltype(access), true>(a.member)); });
  else with_access(kind, [&](auto access) { run_kernel(backward_kernel<decltype(access), false>(a.member)); });
}

}  // namespace vae_fast
