// The op `pairwise` on the GPU: some lanes of a warp share a row forward, with the dims side by side, and walk along the
// columns. So each lane has the sum of its dim for itself, and the joint takes one sum over the lanes a pair. Backward is
// a launch for the rows, likewise, and one for the columns, whose lanes walk along a part of the rows; a last one adds the
// parts in order, in float64.
#include "../math/approximate.h"
#include "reduce.h"

namespace vae_fast {
namespace {

constexpr int kResident = 3;       // blocks that share a processor
constexpr int kRows = 4;           // of a group of lanes at once: what is computed of a column serves them all
constexpr std::int64_t kPart = 64;  // rows of a part at least

// Groups of lanes: one has some rows or a column, its lanes the dims.
struct Groups {
  int lanes = 1;  // of a group: a power of two, at most a warp
  std::int64_t chunks = 1;  // of `lanes` dims
  std::int64_t parts = 1, rows_per_part = 0;
  VAE_FAST_FN int in_block() const { return kThreads / lanes; }
};

Groups lanes_of(std::int64_t dims) {
  Groups g;
  while (g.lanes < kWarp && g.lanes < dims) g.lanes *= 2;
  g.chunks = std::max<std::int64_t>(1, ceil_div(dims, g.lanes));
  return g;
}

VAE_FAST_DEVICE float element(const View3& v, std::int64_t row, std::int64_t d) {
  return element_at<Content::reals>(v.data, v.dtype, row * v.stride[1] + d * v.stride[2]);
}

// Of a column and dim: mu, exp(-logvar/2), -logvar/2 - log(2 pi)/2.
struct Density { float mu, root, offset; };
VAE_FAST_DEVICE Density column_at(const PairwiseTerms& a, std::int64_t column, std::int64_t d) {
  const float logvar = element(a.logvar, column, d);
  return {element(a.mu, column, d), exp(-0.5f * logvar), fma(-0.5f, logvar, -0.5f * kLog2Pi)};
}
VAE_FAST_DEVICE float scaled(float z, const Density& c) { return (z - c.mu) * c.root; }
VAE_FAST_DEVICE float term(float t, const Density& c) { return fma(-0.5f * t, t, c.offset); }
VAE_FAST_DEVICE float fast_exp(float x) { return approximate_exp2(x * kLog2e); }

VAE_FAST_DEVICE float log_weight(const PairwiseTerms& a, std::int64_t row, std::int64_t column) {
  if (a.is_stratified) {
    const std::int64_t own = (a.first + row) % a.columns;
    if (column == own) return a.log_own;  // first: of a single column it is both
    return column == (own + 1) % a.columns ? a.log_next : a.log_other;
  }
  return a.log_weights ? a.log_weights[column] : 0.0f;
}

VAE_FAST_DEVICE float sum_over_group(float value, int lanes) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, offset);
  return value;
}

// A running maximum and the sum of exp(term - it).
struct LogSum {
  float largest = -kLargest;  // finite, so that a difference to it is never inf - inf
  double sum = 0;
  VAE_FAST_DEVICE void add(float x) {
    const float top = largest < x ? x : largest;
    sum = sum * fast_exp(largest - top) + fast_exp(x - top);
    largest = top;
  }
  VAE_FAST_DEVICE float value() const {
    if (!(sum > 0)) return sum == 0 ? -kInfinity : kNaN;
    return largest + log(static_cast<float>(sum));
  }
};

// z of this lane's dim of kRows rows; absent ones repeat the last.
struct Rows {
  std::int64_t first, rows;
  VAE_FAST_DEVICE std::int64_t at(int r) const { return smaller(first + r, rows - 1); }
  VAE_FAST_DEVICE bool has(int r) const { return first + r < rows; }
};
VAE_FAST_DEVICE Rows rows_of(const Groups& g, std::int64_t rows) {
  return {(std::int64_t{blockIdx.x} * g.in_block() + threadIdx.x / g.lanes) * kRows, rows};
}

// The joint terms of the rows with one column: log-weight and the sum over all dims. Every lane has them.
VAE_FAST_DEVICE void joint_terms(const PairwiseTerms& a, const Groups& g, const Rows& rows, std::int64_t column, float (&x)[kRows]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) x[r] = 0;
  for (std::int64_t chunk = 0; chunk < g.chunks; ++chunk) {
    const std::int64_t d = chunk * g.lanes + threadIdx.x % g.lanes;
    if (d >= a.dims) continue;
    const Density c = column_at(a, column, d);
#pragma unroll
    for (int r = 0; r < kRows; ++r) x[r] += term(scaled(element(a.z, rows.at(r), d), c), c);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) x[r] = sum_over_group(x[r], g.lanes) + log_weight(a, rows.at(r), column);
}

__global__ void __launch_bounds__(kThreads, kResident)
pairwise_forward(const __grid_constant__ PairwiseForward a, const __grid_constant__ Groups g) {
  const Rows rows = rows_of(g, a.rows);
  const int lane = threadIdx.x % g.lanes;
  LogSum joint[kRows];
  for (std::int64_t j = 0; j < a.columns; ++j) {
    float x[kRows];
    joint_terms(a, g, rows, j, x);
#pragma unroll
    for (int r = 0; r < kRows; ++r) joint[r].add(x[r]);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    if (lane == 0 && rows.has(r)) a.joint[rows.first + r] = joint[r].value();
  if (!a.dims_out.data) return;
  for (std::int64_t d = lane; d < a.dims; d += g.lanes) {
    LogSum sums[kRows];
    for (std::int64_t j = 0; j < a.columns; ++j) {
      const Density c = column_at(a, j, d);
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        sums[r].add(term(scaled(element(a.z, rows.at(r), d), c), c) + log_weight(a, rows.at(r), j));
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (rows.has(r))
        set_element(a.dims_out.data, a.dims_out.dtype, (rows.first + r) * a.dims_out.stride[1] + d * a.dims_out.stride[2], sums[r].value());
  }
}

// The gradient by one term of a dim's sum.
VAE_FAST_DEVICE float share_of(const PairwiseBackward& a, float term, std::int64_t row, std::int64_t column, std::int64_t d) {
  if (!a.grad_dims.data) return 0;
  return element(a.grad_dims, row, d) * fast_exp((term - element(a.dims_out, row, d)) + log_weight(a, row, column));
}
VAE_FAST_DEVICE float joint_share(const PairwiseBackward& a, float x, std::int64_t row) {
  return a.grad_joint[row * a.grad_joint_stride] * fast_exp(x - a.joint[row]);
}

__global__ void __launch_bounds__(kThreads, kResident)
pairwise_backward_rows(const __grid_constant__ PairwiseBackward a, const __grid_constant__ Groups g) {
  const Rows rows = rows_of(g, a.rows);
  for (std::int64_t chunk = 0; chunk < g.chunks; ++chunk) {
    const std::int64_t d = chunk * g.lanes + threadIdx.x % g.lanes;
    double grad[kRows] = {};
    for (std::int64_t j = 0; j < a.columns; ++j) {
      float x[kRows] = {};
      if (a.grad_joint) {
        joint_terms(a, g, rows, j, x);
#pragma unroll
        for (int r = 0; r < kRows; ++r) x[r] = joint_share(a, x[r], rows.at(r));
      }
      if (d >= a.dims) continue;
      const Density c = column_at(a, j, d);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float t = scaled(element(a.z, rows.at(r), d), c);
        const float share = x[r] + share_of(a, term(t, c), rows.at(r), j, d);
        grad[r] -= share * t * c.root;
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (d < a.dims && rows.has(r))
        set_element(a.grad_z.data, a.grad_z.dtype, (rows.first + r) * a.grad_z.stride[1] + d * a.grad_z.stride[2], static_cast<float>(grad[r]));
  }
}

// A group of lanes has one column and a part of the rows, kRows at once.
__global__ void __launch_bounds__(kThreads, kResident)
pairwise_backward_columns(const __grid_constant__ PairwiseBackward a, const __grid_constant__ Groups g, double* const partial) {
  const std::int64_t group = std::int64_t{blockIdx.x} * g.in_block() + threadIdx.x / g.lanes;
  const std::int64_t given = group % a.columns, part = group / a.columns;  // parts that are not there write nothing
  const std::int64_t begin = part * g.rows_per_part, size = 2 * a.dims + 1;
  const std::int64_t end = part < g.parts ? smaller(begin + g.rows_per_part, a.rows) : begin;
  double* const out = partial + (part * a.columns + given) * size;
  double weight = 0;
  for (std::int64_t chunk = 0; chunk < g.chunks; ++chunk) {
    const std::int64_t d = chunk * g.lanes + threadIdx.x % g.lanes;
    const bool there = d < a.dims;
    const Density c = there ? column_at(a, given, d) : Density{0, 0, 0};
    double by_mu = 0, by_logvar = 0;
    // As many steps for all lanes of a warp, who exchange their sums.
    for (std::int64_t step = 0; step < g.rows_per_part; step += kRows) {
      const Rows rows{smaller(begin + step, a.rows - 1), a.rows};
      float x[kRows] = {};
      if (a.grad_joint) joint_terms(a, g, rows, given, x);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const std::int64_t row = begin + step + r;
        if (row >= end) continue;
        float share = a.grad_joint ? joint_share(a, x[r], row) : 0.0f;
        if (chunk == 0 && threadIdx.x % g.lanes == 0) weight += share;
        if (!there) continue;
        const float t = scaled(element(a.z, row, d), c), of_dim = share_of(a, term(t, c), row, given, d);
        share += of_dim;
        weight += of_dim;
        by_mu += share * t * c.root;
        by_logvar += fma(0.5f * t, t, -0.5f) * share;
      }
    }
    if (there && part < g.parts) out[2 * d] = by_mu, out[2 * d + 1] = by_logvar;
  }
  weight = sum_over_lanes(weight, g.lanes);
  if (threadIdx.x % g.lanes == 0 && part < g.parts) out[size - 1] = weight;
}

__global__ void __launch_bounds__(kThreads)
pairwise_add_parts(const __grid_constant__ PairwiseBackward a, const __grid_constant__ Groups g, const double* const partial) {
  const std::int64_t size = 2 * a.dims + 1, at = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= a.columns * size) return;
  const std::int64_t column = at / size, place = at % size, d = place / 2;
  double total = 0;
  for (std::int64_t part = 0; part < g.parts; ++part) total += partial[part * a.columns * size + at];
  const float value = static_cast<float>(total);
  if (place == size - 1) {
    if (a.grad_log_weights) a.grad_log_weights[column] = value;
    return;
  }
  const View3& out = place % 2 == 0 ? a.grad_mu : a.grad_logvar;
  if (out.data) set_element(out.data, out.dtype, column * out.stride[1] + d * out.stride[2], value);
}

}  // namespace

void run(PairwiseForward a, const Stream& stream, const Allocate&) {
  if (a.rows == 0) return;
  const Groups g = lanes_of(a.dims);
  launch("pairwise_forward", pairwise_forward, stream, ceil_div(a.rows, g.in_block() * kRows), kThreads, a, g);
}

void run(PairwiseBackward a, const Stream& stream, const Allocate& allocate) {
  Groups g = lanes_of(a.dims);
  if (a.grad_z.data && a.rows * a.dims > 0)
    launch("pairwise_backward_rows", pairwise_backward_rows, stream, ceil_div(a.rows, g.in_block() * kRows), kThreads, a, g);
  if (a.columns == 0 || !(a.grad_mu.data || a.grad_logvar.data || a.grad_log_weights)) return;
  const std::int64_t wanted = std::max<std::int64_t>(1, kFill / (a.columns * g.lanes));
  g.rows_per_part = std::max(kPart, ceil_div(ceil_div(a.rows, wanted), kRows) * kRows);
  g.parts = ceil_div(a.rows, g.rows_per_part);
  const std::int64_t size = a.columns * (2 * a.dims + 1);
  double* const partial = g.parts > 0 ? allocate(g.parts * size, 0).partials : nullptr;
  if (g.parts > 0)
    launch("pairwise_backward_columns", pairwise_backward_columns, stream, ceil_div(g.parts * a.columns, g.in_block()), kThreads, a, g, partial);
  launch("pairwise_add_parts", pairwise_add_parts, stream, ceil_div(size, kThreads), kThreads, a, g, static_cast<const double*>(partial));
}

}  // namespace vae_fast
