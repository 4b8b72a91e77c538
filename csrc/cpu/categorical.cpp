// The op `categorical` on the CPU: one pass over the logits forward, one backward. Long runs of classes are taken a block
// at a time, with a sum of its own for each; where classes are few, or not adjacent in memory, the vectors lie across
// positions, and there is nothing to do once a position. Compiled once per instruction set.
#include "../math/special.h"
#include "isa_kernels.h"
#include "blocks/nonzero.h"
#include "blocks/softmax.h"

VAE_FAST_NAMESPACE_BEGIN

namespace {

// x·l; 0 for x = 0 whatever l is, -inf too: a class that is not counted costs nothing.
VAE_FAST_FN vf32 weighted(vf32 x, vf32 l) { return select(x == vf32{}, vf32{}, x * l); }

// total·exp(log_share) - seen. A total may be so large that it counts what exp() leaves out.
template <class F> VAE_FAST_FN F excess(F total, F log_share, F seen) {
  const Factors<F> share = exp_factors_below(log_share);
  return fma(total * share.first, share.second, -seen);
}

float largest_of(const float* p, std::int64_t n) {
  const vf32 lowest = splat<vf32>(static_cast<float>(kLowest));
  vf32 largest = lowest;
  for_each_vector(n, [&](std::int64_t i, int count) VAE_FAST_LAMBDA {
    const vf32 v = load_partial(p + i, count);
    largest = maximum(largest, count == kLanes ? v : select(first_lanes(count), v, lowest));
  });
  float result = largest[0];
  for (int i = 1; i < kLanes; ++i) result = result < largest[i] ? largest[i] : result;
  return result;
}

SoftmaxSums sums_of(const float* logits, const float* counts, std::int64_t n) {
  Buffer exponentials, products;
  const float largest = largest_of(logits, n);
  const vf32 m = splat<vf32>(largest);
  if (!counts) {
    for_each_vector(n, [&](std::int64_t i, int count) VAE_FAST_LAMBDA {
      store(exponentials.data + i, exp_nonpositive(load_partial(logits + i, count) - m));
    });
    return {largest, sum(exponentials.data, n), 0.0, 0.0};
  }
  for_each_vector(n, [&](std::int64_t i, int count) VAE_FAST_LAMBDA {
    const vf32 below = load_partial(logits + i, count) - m;
    store(exponentials.data + i, exp_nonpositive(below));
    store(products.data + i, weighted(load_partial(counts + i, count), below));
  });
  return {largest, sum(exponentials.data, n), sum(products.data, n), sum(counts, n)};
}

// The same of sparse counts: the `count` of them at `index`.
SoftmaxSums sums_of(const float* logits, std::int64_t n, const float* counts, const std::int32_t* index, std::int64_t count) {
  SoftmaxSums sums = sums_of(logits, nullptr, n);
  const vf32 m = splat<vf32>(static_cast<float>(sums.largest));
  Buffer products, stored;
  for_each_vector(count, [&](std::int64_t i, int lanes) VAE_FAST_LAMBDA {
    const vf32 x = gather_as(counts, index + i, lanes, vf32{});
    store(stored.data + i, x);
    store(products.data + i, weighted(x, gather_as(logits, index + i, lanes, vf32{}) - m));
  });
  sums.weighted = sum(products.data, count);
  sums.total = sum(stored.data, count);
  return sums;
}

// The row of sparse counts that a position has.
template <class Args> VAE_FAST_FN std::int64_t csr_row(const Args& a, std::int64_t sample, std::int64_t position) {
  return sample * a.target.stride[0] + position * a.target.stride[1];
}
template <class Args> VAE_FAST_FN CsrReader csr_reader(const Args& a) {
  View values;
  values.data = a.target.data;
  values.dtype = a.target.dtype;
  return CsrReader(a.csr, values);
}

void forward_along(const CategoricalForward& a, const Task& task) {
  for (std::int64_t row = task.row_begin; row < task.row_end; ++row) {
    const std::int64_t sample = row / a.positions, position = row % a.positions;
    const View logits = along_last(a.logits, sample, a.classes), target = along_last(a.target, sample, a.classes);
    SoftmaxSums sums{kLowest, 0.0, 0.0, 0.0};
    CsrReader reader = csr_reader(a);
    for (std::int64_t c = task.column_begin; c < task.column_end; c += kBlock) {
      const std::int64_t left = task.column_end - c, n = left < kBlock ? left : kBlock;
      const Block block{position, 1, c, n};
      Buffer logits_buffer, counts_buffer;
      if (a.csr) {
        std::int32_t index[kBlock + kLanes];
        const std::int64_t count = reader.read(block, csr_row(a, sample, position), task.column_begin, task.column_end, a.classes, index, counts_buffer.data);
        add(sums, sums_of(read(logits, block, logits_buffer), n, counts_buffer.data, index, count));
        continue;
      }
      const float* counts = a.counts ? read(target, block, counts_buffer) : nullptr;
      add(sums, sums_of(read(logits, block, logits_buffer), counts, n));
    }
    if (a.partial) a.partial[row * a.tiling.column_segments + task.segment] = sums;
    else finish(a, sample, position, sums);
  }
}

// What a position's gradient is made of: scale·(total·softmax - x), or nothing.
struct Upstream { float scale, total, lse; std::int64_t number; bool none; };

VAE_FAST_FN Upstream upstream(const CategoricalBackward& a, std::int64_t sample, std::int64_t position) {
  const std::int64_t at = sample * a.positions + position;
  const float* grad = reinterpret_cast<const float*>(a.grad_nll.data);
  Upstream u{grad[sample * a.grad_nll.stride[0] + position * a.grad_nll.stride[1]], a.total[at], a.lse[at], -1, false};
  if (!a.counts) u.number = class_at(a.target, sample, position);
  u.none = !a.counts && u.number == kIgnored;
  return u;
}

void backward_along(const CategoricalBackward& a, const Task& task) {
  for (std::int64_t row = task.row_begin; row < task.row_end; ++row) {
    const std::int64_t sample = row / a.positions, position = row % a.positions;
    const View logits = along_last(a.logits, sample, a.classes), target = along_last(a.target, sample, a.classes);
    const View grad_logits = along_last(a.grad_logits, sample, a.classes);
    const Upstream u = upstream(a, sample, position);
    const vf32 scale = splat<vf32>(u.scale), total = splat<vf32>(u.total);
    CsrReader reader = csr_reader(a);
    for (std::int64_t c = task.column_begin; c < task.column_end; c += kBlock) {
      const std::int64_t left = task.column_end - c, n = left < kBlock ? left : kBlock;
      const Block block{position, 1, c, n};
      Buffer logits_buffer, counts_buffer, grad_buffer;
      float* to = destination(grad_logits, block, grad_buffer);
      if (u.none) {
        for (std::int64_t i = 0; i < n; ++i) to[i] = 0.0f;
      } else {
        const float* l = read(logits, block, logits_buffer);
        const float* x = a.counts && !a.csr ? read(target, block, counts_buffer) : nullptr;
        for_each_vector(n, [&](std::int64_t i, int count) VAE_FAST_LAMBDA {
          const vf32 seen = x ? load_partial(x + i, count) : vf32{};
          store_partial(to + i, scale * excess(total, load_partial(l + i, count) - splat<vf32>(u.lse), seen), count);
        });
        if (const std::int64_t i = u.number - c; i >= 0 && i < n)
          to[i] = u.scale * excess(u.total, l[i] - u.lse, 1.0f);
        if (a.csr) {
          std::int32_t index[kBlock + kLanes];
          const std::int64_t count = reader.read(block, csr_row(a, sample, position), task.column_begin, task.column_end, a.classes, index, counts_buffer.data);
          for_each_vector(count, [&](std::int64_t i, int lanes) VAE_FAST_LAMBDA {
            const vf32 seen = gather_as(counts_buffer.data, index + i, lanes, vf32{});
            const vf32 log_share = gather_as(l, index + i, lanes, vf32{}) - splat<vf32>(u.lse);
            scatter_as(scale * excess(total, log_share, seen), to, index + i, lanes);
          });
        }
      }
      write(grad_logits, block, to);
    }
  }
}

constexpr int kChunk = 8;  // classes in flight across positions

struct Chunk {
  Buffer buffers[kChunk];
  const float* of[kChunk];
  VAE_FAST_FN void read(const View& view, std::int64_t first, int count, std::int64_t column, std::int64_t columns) {
    for (int c = 0; c < count; ++c) of[c] = VAE_FAST_ISA::read(view, Block{first + c, 1, column, columns}, buffers[c]);
  }
};
VAE_FAST_FN int chunk_size(std::int64_t classes, std::int64_t first) {
  return classes - first < kChunk ? static_cast<int>(classes - first) : kChunk;
}

template <bool kCounts>
void forward_across(const CategoricalForward& a, std::int64_t sample, std::int64_t column, std::int64_t n) {
  Buffer largest, exponentials, products, total;
  Chunk logits, counts;
  const View logits_view = along_middle(a.logits, sample, a.positions), target_view = along_middle(a.target, sample, a.positions);
  for (std::int64_t i = 0; i < kBlock; ++i) {
    largest.data[i] = static_cast<float>(kLowest);
    exponentials.data[i] = products.data[i] = total.data[i] = 0.0f;
  }
  for (std::int64_t first = 0; first < a.classes; first += kChunk) {
    const int size = chunk_size(a.classes, first);
    logits.read(logits_view, first, size, column, n);
    if (kCounts) counts.read(target_view, first, size, column, n);
    for_each_vector(n, [&](std::int64_t i, int count) {
      vf32 l[kChunk];
      const vf32 before = load<vf32>(largest.data + i);
      vf32 m = before;
      for (int c = 0; c < size; ++c) m = maximum(m, l[c] = load_partial(logits.of[c] + i, count));
      vf32 e{}, xl{}, x{};
      for (int c = 0; c < size; ++c) {
        const vf32 below = l[c] - m;
        e += exp_nonpositive(below);
        if constexpr (kCounts) {
          const vf32 seen = load_partial(counts.of[c] + i, count);
          xl += weighted(seen, below);
          x += seen;
        }
      }
      store(largest.data + i, m);
      store(exponentials.data + i, fma(load<vf32>(exponentials.data + i), exp_nonpositive(before - m), e));
      if constexpr (kCounts) {
        const vf32 t = load<vf32>(total.data + i);
        store(products.data + i, load<vf32>(products.data + i) + (weighted(t, before - m) + xl));
        store(total.data + i, t + x);
      }
    });
  }

  const std::int64_t at = sample * a.positions + column;
  for (std::int64_t i = 0; !kCounts && i < n; ++i) {
    const std::int64_t number = class_at(a.target, sample, column + i);
    const bool known = is_class(number, a.classes);
    total.data[i] = number == kIgnored ? 0.0f : known ? 1.0f : NAN;
    products.data[i] = known ? logit_at(a.logits, sample, column + i, number) - largest.data[i] : 0.0f;
  }
  for_each_vector(n, [&](std::int64_t i, int count) VAE_FAST_LAMBDA {
    const vf32 m = load<vf32>(largest.data + i), sum = load<vf32>(exponentials.data + i), t = load<vf32>(total.data + i);
    const vf32 e = select(sum == vf32{}, splat<vf32>(NAN), sum);  // all logits are -inf
    const vf32 log_sum = log1p(e - splat<vf32>(1.0f), e).value, lse = m + log_sum;
    const vf32 rounded = lse - m, lost = (m - (lse - rounded)) + (log_sum - rounded);
    const vf32 nll = fma(t, log_sum, -load<vf32>(products.data + i)), corrected = t * exp(-lost);  // as in finish()
    const auto ignored = t == vf32{};
    store_partial(a.nll + at + i, kCounts ? nll : select(ignored, vf32{}, nll), count);
    store_partial(a.lse + at + i, lse, count);
    store_partial(a.total + at + i, kCounts ? corrected : select(ignored, vf32{}, corrected), count);
  });
}

template <bool kCounts>
void backward_across(const CategoricalBackward& a, std::int64_t sample, std::int64_t column, std::int64_t n) {
  Buffer scale, total, lse, grad_buffer;
  Chunk logits, counts;
  alignas(64) std::int32_t numbers[kBlock];
  const View logits_view = along_middle(a.logits, sample, a.positions), target_view = along_middle(a.target, sample, a.positions);
  const View grad_view = along_middle(a.grad_logits, sample, a.positions);
  for (std::int64_t i = 0; i < n; ++i) {
    const Upstream u = upstream(a, sample, column + i);
    scale.data[i] = u.scale;
    total.data[i] = u.total;  // 0 where the target is ignored
    lse.data[i] = u.lse;
    numbers[i] = static_cast<std::int32_t>(u.number);
  }
  for (std::int64_t first = 0; first < a.classes; first += kChunk) {
    const int size = chunk_size(a.classes, first);
    logits.read(logits_view, first, size, column, n);
    if (kCounts) counts.read(target_view, first, size, column, n);
    for (int c = 0; c < size; ++c) {
      const Block block{first + c, 1, column, n};
      float* to = destination(grad_view, block, grad_buffer);
      for_each_vector(n, [&](std::int64_t i, int count) VAE_FAST_LAMBDA {
        const vf32 g = load<vf32>(scale.data + i), t = load<vf32>(total.data + i);
        const vf32 log_share = load_partial(logits.of[c] + i, count) - load<vf32>(lse.data + i);
        vf32 seen;
        if constexpr (kCounts) seen = load_partial(counts.of[c] + i, count);
        else seen = select(load<vi32>(numbers + i) == static_cast<std::int32_t>(first + c), splat<vf32>(1.0f), vf32{});
        const vf32 by = g * excess(t, log_share, seen);
        store_partial(to + i, kCounts ? by : select(t == vf32{}, vf32{}, by), count);
      });
      write(grad_view, block, to);
    }
  }
}

template <class Args, class Body> VAE_FAST_FN void for_each_across(const Args& a, const Task& task, Body body) {
  for (std::int64_t sample = task.row_begin; sample < task.row_end; ++sample)
    for (std::int64_t column = task.column_begin; column < task.column_end; column += kBlock) {
      const std::int64_t left = task.column_end - column;
      body(a, sample, column, left < kBlock ? left : kBlock);
    }
}

}  // namespace

void categorical_forward(const CategoricalForward& a, const Task& task) {
  if (!a.across) return forward_along(a, task);
  for_each_across(a, task, a.counts ? forward_across<true> : forward_across<false>);
}

void categorical_backward(const CategoricalBackward& a, const Task& task) {
  if (!a.across) return backward_along(a, task);
  for_each_across(a, task, a.counts ? backward_across<true> : backward_across<false>);
}

VAE_FAST_NAMESPACE_END
