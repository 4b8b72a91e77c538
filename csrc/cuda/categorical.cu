// The op `categorical` on the GPU: a softmax over the classes at every position, and what the target costs under it. One
// pass forward, with a running maximum; one backward, element by element from the log-sum-exp that forward left.
//
// A position is a row of the grid, its classes are the columns: a thread or a few for many short rows, a block or
// several for few long ones.
#include "../math/special.h"
#include "csr.h"
#include "reduce.h"

namespace vae_fast {
namespace {

constexpr int kResident = 3;  // blocks that share a processor

struct Forward {
  std::int64_t positions, classes;
  View logits, target;
  float *nll, *lse, *total;
  double* partial;
  CsrIndex csr;
};
struct Backward {
  std::int64_t positions, classes;
  View logits, target, grad_logits;
  const float *lse, *total;
  View3 grad_nll;
  CsrIndex csr;
};

// A row of (batch, positions): where it begins in a tensor.
struct Position {
  std::int64_t sample, position;
  VAE_FAST_DEVICE Position(std::int64_t row, std::int64_t positions) {
    std::uint64_t rest;
    sample = static_cast<std::int64_t>(divide(row, positions, rest));
    position = static_cast<std::int64_t>(rest);
  }
  VAE_FAST_DEVICE std::int64_t in(const View& v) const { return sample * v.draw_stride + position * v.row_stride; }
};

VAE_FAST_DEVICE std::int64_t class_at(const View& v, std::int64_t at) {
  if (v.dtype == DType::int64) return reinterpret_cast<const std::int64_t*>(v.data)[at];
  if (v.dtype == DType::int32) return reinterpret_cast<const std::int32_t*>(v.data)[at];
  if (v.dtype == DType::int16) return reinterpret_cast<const std::int16_t*>(v.data)[at];
  return reinterpret_cast<const std::uint8_t*>(v.data)[at];
}
VAE_FAST_DEVICE bool is_class(std::int64_t c, std::int64_t classes) { return c >= 0 && c < classes; }

// Of some elements of a row: the largest logit m and Σ exp(l - m), and of counts x also Σ x and Σ x·(m - l). No term is
// negative, so that nll = Σ x·(m - l) + Σ x·log Σ exp(l - m) does not cancel.
template <bool kCounts> struct Terms {
  float largest = -kLargest;  // finite, so that a difference to it is never inf - inf
  double exponentials = 0, count = 0, below = 0;

  VAE_FAST_DEVICE void raise(float to) {
    const double rise = static_cast<double>(to) - largest;
    exponentials *= exp_nonpositive(static_cast<float>(-rise));
    if constexpr (kCounts) below += count * rise;
    largest = to;
  }

  // F: the arithmetic of one element.
  template <class F, int kSize> VAE_FAST_DEVICE void add(const float (&logits)[kSize], const float (&target)[kSize], int count_) {
    float top = largest;
#pragma unroll
    for (int i = 0; i < kSize; ++i)
      if (i < count_ && logits[i] > top) top = logits[i];
    if (top > largest) raise(top);
    float sum = 0, x = 0, weighted = 0;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (i >= count_) continue;
      sum += value(exp_nonpositive(F(logits[i] - largest)));
      if constexpr (kCounts) {
        x += target[i];
        if (target[i] != 0.0f) weighted += target[i] * (largest - logits[i]);  // nobody counts what cannot be: l = -inf
      }
    }
    exponentials += sum;
    if constexpr (kCounts) count += x, below += weighted;
  }

  // The same bits whichever of the two is called.
  VAE_FAST_DEVICE void merge(Terms other) {
    const float top = largest > other.largest ? largest : other.largest;
    raise(top);
    other.raise(top);
    exponentials += other.exponentials;
    if constexpr (kCounts) count += other.count, below += other.below;
  }

  VAE_FAST_DEVICE Terms from_lane(int offset) const {
    Terms other;
    other.largest = __shfl_xor_sync(0xFFFFFFFFu, largest, offset);
    other.exponentials = __shfl_xor_sync(0xFFFFFFFFu, exponentials, offset);
    if constexpr (kCounts) {
      other.count = __shfl_xor_sync(0xFFFFFFFFu, count, offset);
      other.below = __shfl_xor_sync(0xFFFFFFFFu, below, offset);
    }
    return other;
  }

  static constexpr int numbers = kCounts ? 4 : 2;
  VAE_FAST_DEVICE void write(double* to) const {
    to[0] = largest, to[1] = exponentials;
    if constexpr (kCounts) to[2] = count, to[3] = below;
  }
  VAE_FAST_DEVICE static Terms read(const double* from) {
    Terms terms;
    terms.largest = static_cast<float>(__ldcg(from)), terms.exponentials = __ldcg(from + 1);
    if constexpr (kCounts) terms.count = __ldcg(from + 2), terms.below = __ldcg(from + 3);
    return terms;
  }
};

// What the threads of a row have together, as sum_over_lanes in reduce.h.
template <bool kCounts> VAE_FAST_DEVICE Terms<kCounts> merge_over_lanes(Terms<kCounts> terms, int lanes) {
  for (int offset = (lanes < kWarp ? lanes : kWarp) / 2; offset > 0; offset /= 2) terms.merge(terms.from_lane(offset));
  if (lanes <= kWarp) return terms;
  VAE_FAST_SHARED(Terms<kCounts>[kThreads / kWarp], warps);
  __syncthreads();  // those before have been read
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = terms;
  __syncthreads();
  const int first = threadIdx.x / lanes * (lanes / kWarp);
  terms = warps[first];
  for (int w = 1; w < lanes / kWarp; ++w) terms.merge(warps[first + w]);
  return terms;
}

template <bool kCounts> VAE_FAST_DEVICE void finish(const Forward& a, std::int64_t row, const Terms<kCounts>& terms) {
  // NaN stays NaN, and is the answer where all logits are -inf.
  const float sum = terms.exponentials == 0 && a.classes > 0 ? kNaN : static_cast<float>(terms.exponentials);
  const float rest = static_cast<float>(terms.exponentials - 1), log_sum = log1p(rest, sum).value + (sum - sum);
  double nll = terms.below + terms.count * log_sum, total = terms.count;
  if constexpr (!kCounts) {
    const Position at(row, a.positions);
    const std::int64_t index = class_at(a.target, at.in(a.target));
    nll = kNaN, total = 1;
    if (index == kIgnored) {
      nll = total = 0;
    } else if (is_class(index, a.classes)) {
      const std::int64_t stride = a.classes == 1 ? 0 : a.logits.stride[0];
      const float logit = element_at<Content::reals>(a.logits.data, a.logits.dtype, at.in(a.logits) + index * stride);
      nll = (static_cast<double>(terms.largest) - logit) + log_sum;
    }
  }
  a.nll[row] = static_cast<float>(nll);
  const double lse = static_cast<double>(terms.largest) + log_sum;
  a.lse[row] = static_cast<float>(lse);
  // total·exp(l - lse) loses nothing to lse's rounding if total has the factor that makes up for it.
  const double rounding = (static_cast<double>(a.lse[row]) - terms.largest) - log_sum;
  a.total[row] = static_cast<float>(total * exp(static_cast<float>(rounding)));
}

template <class A, bool kCounts, class Args>
VAE_FAST_DEVICE void load_counts(const Args& a, const Position& position, RowStart<A> start, Column<A> column, int count, float (&target)[A::size]) {
  if constexpr (kIsSparse<A>) load_csr(a.csr, a.target, position.in(a.target), a.classes, column, count, target);
  else if constexpr (kCounts) load<A, Content::targets>(a.target, start, column, count, target);
}

template <class A, bool kCounts>
__global__ void __launch_bounds__(kThreads, kResident)
categorical_forward(const __grid_constant__ Forward a, const __grid_constant__ Grid grid) {
  Place at = place(grid);
  for (int step = 0; step < grid.row_steps; ++step, at.row += grid.rows_at_once()) {
    Terms<kCounts> terms;
    if (at.row < at.row_end) {
      const Position position(at.row, a.positions);
      const auto in_logits = start_at<A>(a.logits, position.in(a.logits)), in_target = start_at<A>(a.target, position.in(a.target));
      for_each_chunk<A>(grid, at, [&](auto column, int count) {
        const Raw<A> raw = load_raw<A>(a.logits, in_logits, column, count);
        float logits[A::size], target[A::size];
        load_counts<A, kCounts>(a, position, in_target, column, count, target);
        unpack<A>(a.logits, raw, logits);
        terms.template add<Arithmetic<A>>(logits, target, count);
      });
    }
    terms = merge_over_lanes(terms, grid.lanes());
    const bool first = (threadIdx.x & (grid.lanes() - 1)) == 0 && at.row < at.row_end;
    if (grid.segments > 1) {  // as reduce_row in reduce.h
      constexpr int numbers = Terms<kCounts>::numbers;
      double* partial = a.partial + at.row * grid.segments * numbers;
      if (first) terms.write(partial + at.segment * numbers);
      if (!comes_last(grid.tickets + at.row, grid.segments)) return;
      terms = {};
      for (std::int64_t s = threadIdx.x; s < grid.segments; s += kThreads) terms.merge(Terms<kCounts>::read(partial + s * numbers));
      terms = merge_over_lanes(terms, kThreads);
    }
    if (first) finish(a, at.row, terms);
  }
}

// grad_nll·(n·softmax(l) - x)
template <class A, bool kCounts>
__global__ void __launch_bounds__(kThreads, kResident)
categorical_backward(const __grid_constant__ Backward a, const __grid_constant__ Grid grid) {
  const Place at = place(grid);
  for (std::int64_t row = at.row; row < at.row_end; row += grid.rows_at_once()) {
    const Position position(row, a.positions);
    const float lse = a.lse[row];
    float total = a.total[row];
    const float upstream = reinterpret_cast<const float*>(a.grad_nll.data)[position.sample * a.grad_nll.stride[0] +
                                                                           position.position * a.grad_nll.stride[1]];
    std::int64_t index = 0;
    if constexpr (!kCounts) {
      index = class_at(a.target, position.in(a.target));
      if (index != kIgnored && !is_class(index, a.classes)) total = kNaN;
    }
    const bool ignored = !kCounts && index == kIgnored;  // whatever its logits are
    const auto in_logits = start_at<A>(a.logits, position.in(a.logits)), in_target = start_at<A>(a.target, position.in(a.target));
    const auto in_grad = start_at<A>(a.grad_logits, position.in(a.grad_logits));
    for_each_chunk<A>(grid, at, [&](auto column, int count) {
      const Raw<A> raw = load_raw<A>(a.logits, in_logits, column, count);
      float logits[A::size], target[A::size];
      load_counts<A, kCounts>(a, position, in_target, column, count, target);
      unpack<A>(a.logits, raw, logits);
#pragma unroll
      for (int i = 0; i < A::size; ++i) {
        const float x = kCounts ? target[i] : column + i == index ? 1.0f : 0.0f;
        const auto share = exp_factors_below(Arithmetic<A>(logits[i] - lse));  // a total may count what exp() leaves out
        logits[i] = ignored ? 0.0f : upstream * fma(total * value(share.first), value(share.second), -x);
      }
      store<A>(a.grad_logits, in_grad, column, count, logits);
    });
  }
}

// A tensor (batch, positions, classes) whose rows are the classes; without a third dimension each is one number.
View rows_of(const View3& t, std::int64_t classes, bool has_classes = true) {
  View v;
  v.data = t.data;
  v.dtype = t.dtype;
  v.draw_stride = t.stride[0];
  v.row_stride = t.stride[1];
  if (has_classes && classes != 1) v.dims = 1, v.size[0] = classes, v.stride[0] = t.stride[2];
  return v;
}

// Where the classes lie apart and the positions side by side, as in images, a thread takes a position of its own, if
// that makes threads enough.
Grid tile(std::int64_t rows, std::int64_t classes, AccessKind kind, const View& logits) {
  Grid grid = tile_rows(rows, classes, chunk_size(kind));
  if (logits.dims == 0 || logits.stride[0] == 1 || logits.row_stride != 1 || rows < kFill / 32) return grid;
  grid.lane_bits = 0;
  grid.segments = 1;
  grid.chunks_per_segment = grid.chunks;
  grid.row_steps = 1;
  grid.rows_per_tile = grid.rows_at_once();
  grid.row_tiles = ceil_div(rows, grid.rows_per_tile);
  return grid;
}

// Calls body(Access{}, std::bool_constant<counts>).
template <class Body> void with_kernel(AccessKind kind, bool counts, const CsrIndex& csr, Body body) {
  if (csr) return body(SparseTarget{}, std::true_type{});
  with_access<true>(kind, [&](auto access) {
    if (counts) body(access, std::true_type{});
    else body(access, std::false_type{});
  });
}

}  // namespace

void run(CategoricalForward a, const Stream& stream, const Allocate& allocate) {
  const std::int64_t rows = a.batch * a.positions;
  if (rows == 0) return;
  Forward args{a.positions, a.classes, rows_of(a.logits, a.classes), rows_of(a.target, a.classes, a.counts), a.nll, a.lse, a.total, nullptr, a.csr};
  const View absent{}, *const views[] = {&args.logits, a.counts ? &args.target : &absent};
  const AccessKind kind = a.csr ? AccessKind::any : choose_access(views, a.positions, a.classes, a.batch, {});
  Grid grid = tile(rows, a.classes, kind, args.logits);
  if (grid.segments > 1) {
    const Scratch scratch = allocate(rows * grid.segments * (a.counts ? Terms<true>::numbers : Terms<false>::numbers), rows);
    args.partial = scratch.partials;
    grid.tickets = scratch.tickets;
  }
  with_kernel(kind, a.counts, a.csr, [&](auto access, auto counts) {
    launch("categorical_forward", categorical_forward<decltype(access), counts.value>, stream, grid.blocks(), kThreads, args, grid);
  });
}

void run(CategoricalBackward a, const Stream& stream, const Allocate&) {
  const std::int64_t rows = a.batch * a.positions;
  if (rows * a.classes == 0) return;
  const Backward args{a.positions, a.classes, rows_of(a.logits, a.classes), rows_of(a.target, a.classes, a.counts),
                      rows_of(a.grad_logits, a.classes), a.lse, a.total, a.grad_nll, a.csr};
  const View absent{}, *const views[] = {&args.logits, a.counts ? &args.target : &absent, &args.grad_logits};
  const AccessKind kind = a.csr ? AccessKind::any : choose_access(views, a.positions, a.classes, a.batch, {});
  const Grid grid = tile(rows, a.classes, kind, args.logits);
  with_kernel(kind, a.counts, a.csr, [&](auto access, auto counts) {
    launch("categorical_backward", categorical_backward<decltype(access), counts.value>, stream, grid.blocks(), kThreads, args, grid);
  });
}

}  // namespace vae_fast
