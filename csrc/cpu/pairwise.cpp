// The op `pairwise` on the CPU: l_ijd = log N(z_id; mu_jd, exp logvar_jd) of every pair, reduced on the fly. Vectors lie
// across the columns j, whose parameters are prepared once, dim by dim; some rows are taken at a time, so that what is
// loaded of a column serves them all. Compiled once per instruction set.
//
// The floor: of each pair and dim one exp each way, 14 instructions, beside 7 forward and 14 backward (and 4 of its first
// pass, for the joint's shares): 53 for every 16 pairs with AVX-512. 1024 x 1024 x 32 are 2.1 million such vectors: 37 ms
// of one core at 3 GHz and one instruction a cycle, 19 ms at two. Measured (2026-11-30): 11 ms forward and 29 backward, of
// which 7 go to columns that leave the first-level cache: 96 of them take 22. One to four rows at once: no difference.
#include <algorithm>
#include <cmath>
#include <vector>

#include "../math/special.h"
#include "blocks/view3_rows.h"
#include "isa_kernels.h"

VAE_FAST_NAMESPACE_BEGIN

namespace {

// Sums over columns have 16 lanes on every instruction set, folded in one order, so that their bits do not depend on it.
constexpr int kWidth = kPairwiseLanes, kVectors = kWidth / kLanes;
// Whose vectors fit the registers beside a column's.
constexpr int kRows = kLanes == 16 ? 4 : kLanes == 8 ? 2 : 1;
constexpr std::int64_t kColumns = 512;  // of a block: its sums for kRows rows stay in the first-level cache
constexpr float kLowest = -kLargest;    // below every term but -inf, and finite: -inf minus itself is NaN

struct Wide { vf32 of[kVectors]; };

VAE_FAST_FN float fold(const Wide& w) {
  typedef float quarter __attribute__((vector_size(16)));
  quarter q[4];
  memcpy(q, w.of, sizeof(q));
  const quarter four = (q[0] + q[2]) + (q[1] + q[3]);
  return (four[0] + four[2]) + (four[1] + four[3]);
}
VAE_FAST_FN float largest(const Wide& w) {
  float lanes[kWidth];
  memcpy(lanes, w.of, sizeof(lanes));
  float m = lanes[0];
  for (int i = 1; i < kWidth; ++i) m = m < lanes[i] ? lanes[i] : m;
  return m;
}

// The columns as `prepare` left them, by dim: mu, exp(-logvar/2)/sqrt(2), -logvar/2 - log(2 pi)/2. What fills them up to
// whole vectors has the term -inf.
struct Columns {
  const float *mu, *root, *offset;
  VAE_FAST_FN Columns(const PairwiseTerms& a, std::int64_t dim, std::int64_t column)
      : mu(a.columns_data + dim * a.stride + column), root(mu + a.dims * a.stride), offset(root + a.dims * a.stride) {}
};

// t = (z - mu) exp(-logvar/2)/sqrt(2) and the term -t² + offset
struct Term { vf32 t, value; };
VAE_FAST_FN Term term(vf32 z, vf32 mu, vf32 root, vf32 offset) {
  const vf32 t = (z - mu) * root;
  return {t, fma(-t, t, offset)};
}

template <class To> VAE_FAST_FN void copy_row(const View3& tensor, std::int64_t row, std::int64_t dims, To to) {
  const View view = along_last(tensor, 0, dims);
  for (std::int64_t d = 0; d < dims; d += kBlock) {
    Buffer buffer;
    const std::int64_t n = dims - d < kBlock ? dims - d : kBlock;
    const float* from = read(view, Block{row, 1, d, n}, buffer);
    for (std::int64_t i = 0; i < n; ++i) to(d + i, from[i]);
  }
}

// Task rows are columns of the op here.
void prepare(const PairwiseTerms& a, const Task& task) {
  const std::int64_t plane = a.dims * a.stride;
  float *mu = a.columns_data, *root = mu + plane, *offset = root + plane;
  const auto fill = [&](std::int64_t j) {
    for (std::int64_t d = 0; d < a.dims; ++d) {
      mu[d * a.stride + j] = root[d * a.stride + j] = 0.0f;
      offset[d * a.stride + j] = -kInfinity;
    }
  };
  for (std::int64_t j = task.row_begin; j < task.row_end; ++j) {
    copy_row(a.mu, j, a.dims, [&](std::int64_t d, float x) { mu[d * a.stride + j] = x; });
    copy_row(a.logvar, j, a.dims, [&](std::int64_t d, float x) {
      offset[d * a.stride + j] = fma(-0.5f, x, -0.5f * kLog2Pi);
      root[d * a.stride + j] = 0.70710678118654752f * exp(-0.5f * x);
    });
  }
  if (task.row_end == a.columns)
    for (std::int64_t j = a.columns; j < a.stride; ++j) fill(j);
}

// Log-weights of a block of columns for some rows: the columns' own, or the stratified estimator's, which differ from row
// to row.
class Weights {
 public:
  Weights(const PairwiseTerms& a) : a_(a), data_(kRows * kColumns) {}

  // Rows from `row` on, of which `rows` are the tensor's.
  void read(std::int64_t row, std::int64_t column, std::int64_t n) {
    const std::int64_t whole = (n + kWidth - 1) / kWidth * kWidth;
    for (int r = 0; r < kRows; ++r) {
      float* to = data_.data() + r * kColumns;
      if (r > 0 && !a_.is_stratified) { memcpy(to, data_.data(), whole * sizeof(float)); continue; }
      if (a_.is_stratified || !a_.log_weights) std::fill_n(to, n, a_.is_stratified ? a_.log_other : 0.0f);
      else for (std::int64_t i = 0; i < n; ++i) to[i] = a_.log_weights[column + i];
      std::fill(to + n, to + whole, -kInfinity);
      if (!a_.is_stratified) continue;
      const std::int64_t own = (a_.first + row + r) % a_.columns, next = (own + 1) % a_.columns;
      if (next >= column && next < column + n) to[next - column] = a_.log_next;
      if (own >= column && own < column + n) to[own - column] = a_.log_own;  // last: of one column it is both
    }
  }
  const float* of(int r) const { return data_.data() + r * kColumns; }

 private:
  const PairwiseTerms& a_;
  std::vector<float> data_;
};

// z of kRows rows, by dim; where there are fewer the last one is there several times.
void read_rows(const View3& tensor, std::int64_t row, std::int64_t end, std::int64_t dims, float* to) {
  for (int r = 0; r < kRows; ++r)
    copy_row(tensor, std::min(row + r, end - 1), dims, [&](std::int64_t d, float x) { to[d * kRows + r] = x; });
}

// logsumexp over the columns of w_ij + l_ijd of one row and dim, with the largest term taken off first.
float careful(const PairwiseForward& a, std::int64_t row, std::int64_t d, float z) {
  std::vector<float> terms(a.stride, -kInfinity);
  Weights weights(a);
  Wide m;
  for (vf32& v : m.of) v = splat<vf32>(kLowest);
  for (std::int64_t j = 0; j < a.columns; j += kColumns) {
    const std::int64_t n = std::min(kColumns, a.columns - j);
    weights.read(row, j, n);
    const Columns c(a, d, j);
    for (std::int64_t i = 0; i < n; i += kLanes) {
      const int count = static_cast<int>(std::min<std::int64_t>(kLanes, n - i));
      const vf32 l = term(splat<vf32>(z), load<vf32>(c.mu + i), load<vf32>(c.root + i), load<vf32>(c.offset + i)).value;
      const vf32 x = l + load<vf32>(weights.of(0) + i);
      vf32& lane = m.of[i / kLanes % kVectors];
      const vf32 kept = select(first_lanes(count), x, splat<vf32>(-kInfinity));
      lane = maximum(lane, kept);
      store(terms.data() + j + i, kept);
    }
  }
  const float top = largest(m);
  Wide sum{};
  for (std::int64_t i = 0; i < a.stride; i += kWidth)
    for (int v = 0; v < kVectors; ++v)
      sum.of[v] += exp_nonpositive(load<vf32>(terms.data() + i + v * kLanes) - splat<vf32>(top));
  return static_cast<float>(top + std::log(static_cast<double>(fold(sum))));
}

// The joint's largest term and the sum of exp(term - it), lane by lane.
struct Joint {
  Wide m, sum;
  Joint() {
    for (int v = 0; v < kVectors; ++v) m.of[v] = splat<vf32>(kLowest), sum.of[v] = vf32{};
  }
  // n terms, whole vectors of them.
  VAE_FAST_FN void add(const float* terms, std::int64_t n) {
    const Wide before = m;
    for (std::int64_t i = 0; i < n; i += kWidth)
      for (int v = 0; v < kVectors; ++v) m.of[v] = maximum(m.of[v], load<vf32>(terms + i + v * kLanes));
    for (int v = 0; v < kVectors; ++v) sum.of[v] *= exp_nonpositive(before.of[v] - m.of[v]);
    for (std::int64_t i = 0; i < n; i += kWidth)
      for (int v = 0; v < kVectors; ++v)
        sum.of[v] += exp_nonpositive(load<vf32>(terms + i + v * kLanes) - m.of[v]);
  }
  float value() const {
    const float top = largest(m);
    Wide scaled;
    for (int v = 0; v < kVectors; ++v) scaled.of[v] = sum.of[v] * exp_nonpositive(m.of[v] - splat<vf32>(top));
    return static_cast<float>(top + std::log(static_cast<double>(fold(scaled))));
  }
};

// A sum of exp(l - shift), shifted by the own column's term, is right while it is neither tiny nor so large that the
// differences have lost digits. A weight below kLeastWeight could hide a term that is.
constexpr float kLeastSum = 1e-30f, kMostSum = 16384.0f, kLeastLogWeight = -70.0f, kMostShift = 88.0f;

bool may_shift(const PairwiseForward& a) {
  if (a.first < 0 || a.columns == 0 || (a.is_stratified && a.log_other < kLeastLogWeight)) return false;
  for (std::int64_t j = 0; a.log_weights && j < a.columns; ++j)
    if (!(a.log_weights[j] == -kInfinity || (a.log_weights[j] > kLeastLogWeight && a.log_weights[j] < -kLeastLogWeight)))
      return false;
  return true;
}

template <bool kDims> void forward(const PairwiseForward& a, const Task& task) {
  const bool shifted = kDims && may_shift(a);
  const std::int64_t dims = a.dims;
  std::vector<float> z(dims * kRows), shift(dims * kRows), sums(dims * kRows * kWidth), terms(kRows * kColumns), factors(terms.size());
  std::vector<float> line(dims);
  Weights weights(a);
  const View out = along_last(a.dims_out, 0, dims);
  for (std::int64_t row = task.row_begin; row < task.row_end; row += kRows) {
    const int rows = static_cast<int>(std::min<std::int64_t>(kRows, task.row_end - row));
    read_rows(a.z, row, task.row_end, dims, z.data());
    if (shifted)
      for (int r = 0; r < kRows; ++r) {
        const std::int64_t own = (a.first + std::min(row + r, task.row_end - 1)) % a.columns;
        for (std::int64_t d = 0; d < dims; ++d) {
          const Columns c(a, d, own);
          const float t = (z[d * kRows + r] - *c.mu) * *c.root;
          shift[d * kRows + r] = fma(-t, t, *c.offset);
        }
      }
    std::fill(sums.begin(), sums.end(), 0.0f);
    Joint joint[kRows];
    for (std::int64_t j = 0; j < a.columns; j += kColumns) {
      const std::int64_t n = std::min(kColumns, a.columns - j), whole = (n + kWidth - 1) / kWidth * kWidth;
      weights.read(row, j, n);
      std::fill_n(terms.data(), terms.size(), 0.0f);
      if (shifted)
        for (int r = 0; r < kRows; ++r)
          for (std::int64_t i = 0; i < whole; i += kLanes)
            store(&factors[r * kColumns + i], exp(load<vf32>(weights.of(r) + i)));
      for (std::int64_t d = 0; d < dims; ++d) {
        const Columns c(a, d, j);
        vf32 z_of[kRows], shift_of[kRows];
        Wide sum[kRows];
        for (int r = 0; r < kRows; ++r) {
          z_of[r] = splat<vf32>(z[d * kRows + r]);
          if (kDims && shifted) {
            shift_of[r] = splat<vf32>(shift[d * kRows + r]);
            memcpy(sum[r].of, &sums[(d * kRows + r) * kWidth], sizeof(Wide));
          }
        }
        const bool with_sums = kDims && shifted;
        const auto pass = [&](auto has_sums) VAE_FAST_LAMBDA {
          for (std::int64_t i = 0; i < whole; i += kWidth)
            for (int v = 0; v < kVectors; ++v) {
              const std::int64_t at = i + v * kLanes;
              const vf32 mu = load<vf32>(c.mu + at), root = load<vf32>(c.root + at), offset = load<vf32>(c.offset + at);
              for (int r = 0; r < kRows; ++r) {
                float* to = &terms[r * kColumns + at];
                const vf32 l = term(z_of[r], mu, root, offset).value;
                store(to, load<vf32>(to) + l);
                if constexpr (decltype(has_sums)::value) {
                  const vf32 e = exp_nonpositive(minimum(splat<vf32>(kMostShift), l - shift_of[r]));
                  sum[r].of[v] = fma(e, load<vf32>(&factors[r * kColumns + at]), sum[r].of[v]);
                }
              }
            }
        };
        if (with_sums) pass(std::true_type{});
        else pass(std::false_type{});
        if (with_sums)
          for (int r = 0; r < kRows; ++r) memcpy(&sums[(d * kRows + r) * kWidth], sum[r].of, sizeof(Wide));
      }
      for (int r = 0; r < kRows; ++r) {
        float* x = &terms[r * kColumns];
        for (std::int64_t i = 0; i < whole; i += kLanes) {
          const int count = static_cast<int>(std::min<std::int64_t>(kLanes, std::max<std::int64_t>(0, n - i)));
          const vf32 sum = load<vf32>(x + i) + load<vf32>(weights.of(r) + i);
          store(x + i, select(first_lanes(count), sum, splat<vf32>(-kInfinity)));
        }
        joint[r].add(x, whole);
      }
    }
    for (int r = 0; r < rows; ++r) {
      if (a.joint) a.joint[row + r] = joint[r].value();
      if (!kDims) continue;
      for (std::int64_t d = 0; d < dims; ++d) {
        Wide sum;
        memcpy(sum.of, &sums[(d * kRows + r) * kWidth], sizeof(Wide));
        const float total = shifted ? fold(sum) : 0.0f;
        line[d] = total > kLeastSum && total < kMostSum ? shift[d * kRows + r] + log(total)
                                                        : careful(a, row + r, d, z[d * kRows + r]);
      }
      for (std::int64_t d = 0; d < dims; d += kBlock)
        copy_out(out, Block{row + r, 1, d, std::min(kBlock, dims - d)}, line.data() + d);
    }
  }
}

// What a group of rows adds to the columns' gradients: planes of mu and logvar, by dim, then the log-weights.
template <bool kDims> void backward(const PairwiseBackward& a, const Task& task) {
  const std::int64_t dims = a.dims;
  const bool has_joint = a.grad_joint != nullptr;
  std::vector<float> z(dims * kRows), grad_dims(z.size()), lse(z.size()), grad_z(dims * kRows * kWidth);
  std::vector<float> terms(kRows * kColumns), line(dims);
  Weights weights(a);
  float* const by_mu = a.partial + task.group * a.partial_size;
  float *const by_logvar = by_mu + dims * a.stride, *const by_weight = by_logvar + dims * a.stride;
  std::fill_n(by_mu, a.partial_size, 0.0f);
  for (std::int64_t row = task.row_begin; row < task.row_end; row += kRows) {
    const int rows = static_cast<int>(std::min<std::int64_t>(kRows, task.row_end - row));
    read_rows(a.z, row, task.row_end, dims, z.data());
    float grad_joint[kRows], joint[kRows];
    for (int r = 0; r < kRows; ++r) {
      const std::int64_t at = std::min(row + r, task.row_end - 1);
      grad_joint[r] = has_joint && r < rows ? a.grad_joint[at * a.grad_joint_stride] : 0.0f;
      joint[r] = a.joint[at];
    }
    if (kDims) {
      read_rows(a.dims_out, row, task.row_end, dims, lse.data());
      read_rows(a.grad_dims, row, task.row_end, dims, grad_dims.data());
      for (int r = rows; r < kRows; ++r)
        for (std::int64_t d = 0; d < dims; ++d) grad_dims[d * kRows + r] = 0.0f;
    }
    std::fill(grad_z.begin(), grad_z.end(), 0.0f);
    for (std::int64_t j = 0; j < a.columns; j += kColumns) {
      const std::int64_t n = std::min(kColumns, a.columns - j), whole = (n + kWidth - 1) / kWidth * kWidth;
      weights.read(row, j, n);
      std::fill_n(terms.data(), terms.size(), 0.0f);
      if (has_joint) {
        for (std::int64_t d = 0; d < dims; ++d) {
          const Columns c(a, d, j);
          vf32 z_of[kRows];
          for (int r = 0; r < kRows; ++r) z_of[r] = splat<vf32>(z[d * kRows + r]);
          for (std::int64_t i = 0; i < whole; i += kLanes) {
            const vf32 mu = load<vf32>(c.mu + i), root = load<vf32>(c.root + i), offset = load<vf32>(c.offset + i);
            for (int r = 0; r < kRows; ++r) {
              float* to = &terms[r * kColumns + i];
              store(to, load<vf32>(to) + term(z_of[r], mu, root, offset).value);
            }
          }
        }
        for (int r = 0; r < rows; ++r)
          for (std::int64_t i = 0; i < whole; i += kLanes) {
            float* to = &terms[r * kColumns + i];
            const vf32 x = load<vf32>(to) + load<vf32>(weights.of(r) + i) - splat<vf32>(joint[r]);
            const int count = static_cast<int>(std::min<std::int64_t>(kLanes, std::max<std::int64_t>(0, n - i)));
            const vf32 share = select(first_lanes(count), splat<vf32>(grad_joint[r]) * exp_nonpositive(x), vf32{});
            store(to, share);
            store(by_weight + j + i, load<vf32>(by_weight + j + i) + share);
          }
        for (int r = rows; r < kRows; ++r) std::fill_n(&terms[r * kColumns], whole, 0.0f);
      }
      for (std::int64_t d = 0; d < dims; ++d) {
        const Columns c(a, d, j);
        vf32 z_of[kRows], lse_of[kRows], grad_of[kRows];
        Wide sum[kRows];
        for (int r = 0; r < kRows; ++r) {
          z_of[r] = splat<vf32>(z[d * kRows + r]);
          memcpy(sum[r].of, &grad_z[(d * kRows + r) * kWidth], sizeof(Wide));
          if (kDims) lse_of[r] = splat<vf32>(lse[d * kRows + r]), grad_of[r] = splat<vf32>(grad_dims[d * kRows + r]);
        }
        float *const to_mu = by_mu + d * a.stride + j, *const to_logvar = by_logvar + d * a.stride + j;
        float* const to_weight = kDims && a.has_weight_grad ? by_weight + j : nullptr;
        const float* const joint_shares = terms.data();
        const float* const log_weights = weights.of(0);
        for (std::int64_t i = 0; i < whole; i += kWidth)
          for (int v = 0; v < kVectors; ++v) {
            const std::int64_t at = i + v * kLanes;
            const vf32 mu = load<vf32>(c.mu + at), root = load<vf32>(c.root + at), offset = load<vf32>(c.offset + at);
            vf32 sum_mu = load<vf32>(to_mu + at), sum_logvar = load<vf32>(to_logvar + at), sum_weight{};
            for (int r = 0; r < kRows; ++r) {
              const Term l = term(z_of[r], mu, root, offset);
              vf32 share = load<vf32>(joint_shares + r * kColumns + at);
              if (kDims) {
                const vf32 x = (l.value - lse_of[r]) + load<vf32>(log_weights + r * kColumns + at);
                const vf32 own = grad_of[r] * exp_nonpositive(x);
                if (to_weight) sum_weight += own;
                share += own;
              }
              const vf32 slope = share * l.t, by_mean = slope * root;
              sum[r].of[v] += by_mean;
              sum_mu += by_mean;
              sum_logvar = fma(slope, l.t, fma(splat<vf32>(-0.5f), share, sum_logvar));
            }
            store(to_mu + at, sum_mu);
            store(to_logvar + at, sum_logvar);
            if (to_weight) store(to_weight + at, load<vf32>(to_weight + at) + sum_weight);
          }
        for (int r = 0; r < kRows; ++r) memcpy(&grad_z[(d * kRows + r) * kWidth], sum[r].of, sizeof(Wide));
      }
    }
    if (!a.grad_z.data) continue;
    const View out = along_last(a.grad_z, 0, dims);
    for (int r = 0; r < rows; ++r) {
      for (std::int64_t d = 0; d < dims; ++d) {
        Wide sum;
        memcpy(sum.of, &grad_z[(d * kRows + r) * kWidth], sizeof(Wide));
        line[d] = -2.0f * fold(sum);  // two roots of 1/2
      }
      for (std::int64_t d = 0; d < dims; d += kBlock)
        copy_out(out, Block{row + r, 1, d, std::min(kBlock, dims - d)}, line.data() + d);
    }
  }
}

// The groups' parts of the columns' gradients, in order, in float64. Task rows are columns of the op here.
void finish(const PairwiseBackward& a, const Task& task) {
  std::vector<float> line(a.dims);
  const auto write = [&](const View3& to, std::int64_t plane, std::int64_t j, double factor) {
    if (!to.data) return;
    for (std::int64_t d = 0; d < a.dims; ++d) {
      double total = 0;
      for (std::int64_t g = 0; g < a.groups; ++g) total += a.partial[g * a.partial_size + (plane * a.dims + d) * a.stride + j];
      line[d] = static_cast<float>(factor * total);
    }
    const View out = along_last(to, 0, a.dims);
    for (std::int64_t d = 0; d < a.dims; d += kBlock)
      copy_out(out, Block{j, 1, d, std::min(kBlock, a.dims - d)}, line.data() + d);
  };
  for (std::int64_t j = task.row_begin; j < task.row_end; ++j) {
    write(a.grad_mu, 0, j, 2.0);
    write(a.grad_logvar, 1, j, 1.0);
    if (!a.grad_log_weights) continue;
    double total = 0;
    for (std::int64_t g = 0; g < a.groups; ++g) total += a.partial[g * a.partial_size + 2 * a.dims * a.stride + j];
    a.grad_log_weights[j] = static_cast<float>(total);
  }
}

}  // namespace

void pairwise_forward(const PairwiseForward& a, const Task& task) {
  if (a.phase == PairwisePhase::prepare) return prepare(a, task);
  a.dims_out.data ? forward<true>(a, task) : forward<false>(a, task);
}

void pairwise_backward(const PairwiseBackward& a, const Task& task) {
  if (a.phase == PairwisePhase::prepare) return prepare(a, task);
  if (a.phase == PairwisePhase::finish) return finish(a, task);
  a.grad_dims.data ? backward<true>(a, task) : backward<false>(a, task);
}

VAE_FAST_NAMESPACE_END
