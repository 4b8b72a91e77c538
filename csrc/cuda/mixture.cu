// The op `mixture` on the GPU: one thread a pixel, side by side in memory where the channels come first, so that each
// parameter is one coalesced access of a warp. Nothing of a pixel is held that grows with the number of components: their
// parameters are read once forward, and backward once for the sums and, from the cache, once more for the derivatives.
#include "../formulas/mixture.h"
#include "reduce.h"

namespace vae_fast {
namespace {

constexpr int kResident = 3;  // blocks that share a processor

VAE_FAST_DEVICE std::int64_t place_in(const View3& v, std::int64_t row, std::int64_t pixel) {
  return row * v.stride[0] + pixel * v.stride[2];
}

VAE_FAST_DEVICE std::int64_t place_in(const View& v, std::int64_t row, std::int64_t pixel) {
  return row * v.row_stride + (v.dims == 0 ? 0 : pixel * v.stride[0]);
}

template <int C> VAE_FAST_DEVICE void load_target(const View3& target, std::int64_t row, std::int64_t pixel, float (&t)[C]) {
  const std::int64_t at = place_in(target, row, pixel);
#pragma unroll
  for (int c = 0; c < C; ++c) {
    const float x = element_at<Content::targets>(target.data, target.dtype, at + c * target.stride[1]);
    t[c] = x + x - 1.0f;
  }
}
VAE_FAST_DEVICE bool is_kept(const View3& mask, std::int64_t row, std::int64_t pixel) {
  return !mask.data || mask.data[place_in(mask, row, pixel)] != 0;
}

template <int C>
__global__ void __launch_bounds__(kThreads, kResident)
mixture_forward(const __grid_constant__ MixtureForward a, const __grid_constant__ Grid grid) {
  Place at = place(grid);
  for (int step = 0; step < grid.row_steps; ++step, at.row += grid.rows_at_once()) {
    double nll = 0;
    if (const std::int64_t row = at.row; row < at.row_end) {
      for (std::int64_t pixel = at.chunk; pixel < at.chunk_end; pixel += grid.lanes()) {
        float term = 0;
        if (is_kept(a.mask, row, pixel)) {
          float t[C];
          load_target<C>(a.target, row, pixel, t);
          const std::int64_t from = place_in(a.parameters, row, pixel);
          term = mixture_nll<C>(t, static_cast<int>(a.components), [&](int p) {
            return element_at<Content::reals>(a.parameters.data, a.parameters.dtype, from + p * a.parameters.stride[1]);
          });
        }
        nll += term;
        if (a.nll.elements) reinterpret_cast<float*>(a.nll.elements.data)[place_in(a.nll.elements, row, pixel)] = term;
      }
    }
    if (a.nll.value) reduce_row(a.nll, grid, at, nll);
  }
}

template <int C>
__global__ void __launch_bounds__(kThreads, kResident)
mixture_backward(const __grid_constant__ MixtureBackward a, const __grid_constant__ Grid grid) {
  const Place at = place(grid);
  for (std::int64_t row = at.row; row < at.row_end; row += grid.rows_at_once()) {
    const float of_row = of_sample(a.grad_nll, row);
    for (std::int64_t pixel = at.chunk; pixel < at.chunk_end; pixel += grid.lanes()) {
      const std::int64_t from = place_in(a.parameters, row, pixel), to = place_in(a.grad_parameters, row, pixel);
      const int components = static_cast<int>(a.components);
      const View& each = a.grad_nll.elements;
      const float upstream = each ? reinterpret_cast<const float*>(each.data)[place_in(each, row, pixel)] : of_row;
      const auto store = [&](int p, float value) {
        set_element(a.grad_parameters.data, a.grad_parameters.dtype, to + p * a.grad_parameters.stride[1], value);
      };
      if (!is_kept(a.mask, row, pixel)) {
        for (int p = 0; p < MixtureLayout<C>::per_component * components; ++p) store(p, 0.0f);
        continue;
      }
      float t[C];
      load_target<C>(a.target, row, pixel, t);
      mixture_gradient<C>(
          t, components,
          [&](int p) {
            return element_at<Content::reals>(a.parameters.data, a.parameters.dtype, from + p * a.parameters.stride[1]);
          },
          [&](int p, float value) { store(p, upstream * value); });
    }
  }
}

}  // namespace

void run(MixtureForward a, const Stream& stream, const Allocate& allocate) {
  if (a.batch == 0) return;
  Grid grid = tile_rows(a.batch, a.pixels, 1);
  share(a.nll, grid, allocate);
  launch("mixture_forward", a.channels == 1 ? mixture_forward<1> : mixture_forward<3>, stream, grid.blocks(), kThreads, a, grid);
}

void run(MixtureBackward a, const Stream& stream, const Allocate&) {
  if (a.batch * a.pixels == 0) return;
  const Grid grid = tile_rows(a.batch, a.pixels, 1);
  launch("mixture_backward", a.channels == 1 ? mixture_backward<1> : mixture_backward<3>, stream, grid.blocks(), kThreads, a, grid);
}

}  // namespace vae_fast
