// The kernels' arguments, and how a whole tensor becomes tasks. Plain data, shared by all instruction sets.
#pragma once

#include "tensor_view.h"

namespace vae_fast {

// A batch of `rows` samples of `columns` elements each, cut into row_groups x column_segments tasks. The cut depends
// on the shape alone, never on the number of threads, so that every sum is added in the same order.
struct Tiling {
  std::int64_t rows = 0, columns = 0;
  std::int64_t rows_per_block = 1;  // short samples share a block
  std::int64_t row_groups = 0, rows_per_group = 0;
  std::int64_t column_segments = 1, columns_per_segment = 0;
};

struct Task { std::int64_t group, segment, row_begin, row_end, column_begin, column_end; };

// Sample b of draw k has row k · rows + first_row + b of the noise; with a state per sample, row k. A row is a 32-bit
// counter: what is beyond wraps.
struct Noise {
  View given;  // the caller's own eps, or
  const std::int64_t* rng_state = nullptr;  // (seed, offset)
  bool state_per_sample = false;
  bool has_rows = false;  // rng_state is (seed, offset, first_row, rows); else first_row is 0, and rows
  std::int64_t rows = 0;  // the batch's own
};

// A loss: of each sample, value[row · stride], or partial[row · column_segments + segment] where several tasks share a
// row; or of each element.
struct Loss {
  float* value = nullptr;
  std::int64_t stride = 1, draw_stride = 0;
  double* partial = nullptr;
  View elements;
  VAE_FAST_FN explicit operator bool() const { return value || elements; }
};

// The gradient by a loss, likewise.
struct Upstream {
  const float* value = nullptr;
  std::int64_t stride = 0, draw_stride = 0;
  View elements;
  VAE_FAST_FN explicit operator bool() const { return value || elements; }
};

// The gradient of a parameter: per element, summed over the draws (in float32), over the draws and the batch, or over
// everything. The last two are gathered per row group in `partial` (row_groups x columns, or row_groups x column_segments)
// and added up in order.
enum class Reduction : int { none, draws, batch, all };
struct Gradient { View view; Reduction reduction = Reduction::none; double* partial = nullptr; };

struct Clamp { bool active = false; float low = 0, high = 0; };

// What the op `latent` reads its second argument, raw, as: σ² = exp(raw) + ε, σ = exp(raw) + ε, σ = softplus(raw) + ε,
// σ = raw + ε.
#define VAE_FAST_PARAMETRIZATIONS(X) X(logvar) X(logstd) X(softplus) X(std)
#define VAE_FAST_ENUMERATOR(name) name,
enum class Parametrization : int { VAE_FAST_PARAMETRIZATIONS(VAE_FAST_ENUMERATOR) };
#undef VAE_FAST_ENUMERATOR

struct Form {
  Parametrization kind = Parametrization::logvar;
  float epsilon = 0;
  float soft_clamp = 0;   // c of c·tanh(x/c), of mu and raw; 0: none
  bool of_prior = false;  // the prior is read likewise, clamps included; else it is (mu_p, logvar_p)
  VAE_FAST_FN bool has_exact_logvar() const {
    return epsilon == 0 && (kind == Parametrization::logvar || kind == Parametrization::logstd);
  }
  VAE_FAST_FN bool is_plain() const {
    return kind == Parametrization::logvar && epsilon == 0 && soft_clamp == 0 && !of_prior;
  }
};

// The arguments of each kernel of ops.def. tiling.rows and tiling.columns are the caller's, the rest of it the engine's.
struct LatentForward {
  Tiling tiling;
  View mu, logvar, prior_mu, prior_logvar;
  Noise noise;
  std::int64_t draws = 1;
  Clamp clamp;
  View z;
  Loss kl;
  Form form;
  View shift, scale;  // of z
};

struct LatentBackward {
  Tiling tiling;
  View grad_z, mu, logvar, prior_mu, prior_logvar;
  Upstream grad_kl;
  Noise noise;
  std::int64_t draws = 1;
  Clamp clamp;
  View grad_mu, grad_logvar;
  Gradient grad_prior_mu, grad_prior_logvar;
  Form form;
  View scale;  // of z
};

// Draw k of these is draw first_draw + k of the noise.
struct ImportanceForward {
  Tiling tiling;
  View mu, logvar, prior_mu, prior_logvar;
  Noise noise;
  std::int64_t draws = 1, first_draw = 0;
  std::int64_t draw_begin = 0, draw_end = 0;  // on the CPU, those of a task
  Clamp clamp;
  View z;
  Loss weights;
};

struct ImportanceBackward {
  Tiling tiling;
  View grad_z, mu, logvar, prior_mu, prior_logvar;
  Upstream grad_weights;
  Noise noise;
  std::int64_t draws = 1, first_draw = 0;
  Clamp clamp;
  bool path_derivative = false;
  View grad_mu, grad_logvar;
  Gradient grad_prior_mu, grad_prior_logvar;
};

struct NoiseFill {
  Tiling tiling;
  Noise noise;
  std::int64_t draws = 1;
  View eps;
};

// Where the counts of a sparse target are: those of its row r are its elements [crow[r], crow[r + 1]), in ascending columns.
struct CsrIndex {
  const char *crow = nullptr, *col = nullptr;  // null: the target is dense
  bool is_wide = false;                        // int64, else int32
  VAE_FAST_FN explicit operator bool() const { return crow != nullptr; }
  VAE_FAST_FN std::int64_t at(const char* indices, std::int64_t i) const {
    return is_wide ? reinterpret_cast<const std::int64_t*>(indices)[i] : reinterpret_cast<const std::int32_t*>(indices)[i];
  }
  VAE_FAST_FN std::int64_t begin(std::int64_t row) const { return at(crow, row); }
  VAE_FAST_FN std::int64_t column(std::int64_t i) const { return at(col, i); }
  // The first element of [first, end) whose column is not below this one.
  VAE_FAST_FN std::int64_t find(std::int64_t first, std::int64_t end, std::int64_t wanted) const {
    while (first < end) {
      const std::int64_t middle = first + (end - first) / 2;
      if (column(middle) < wanted) first = middle + 1;
      else end = middle;
    }
    return first;
  }
};

constexpr int kMaxParameters = 5;  // of a likelihood

// mask: false leaves an element out, whatever its target is. binarization: where its rng_state is given, the target is
// 1 with probability `target`, else 0. draws: of parameters, losses and gradients; one target and one mask serve them all.
struct LikelihoodForward {
  Tiling tiling;
  std::int64_t draws = 1;
  int likelihood = 0;  // its place in likelihoods.def
  View parameters[kMaxParameters], target, mask;
  Noise binarization;
  Loss nll;
  CsrIndex csr;  // of a target whose elements are the stored counts
};

struct LikelihoodBackward {
  Tiling tiling;
  std::int64_t draws = 1;
  int likelihood = 0;  // its place in likelihoods.def
  View parameters[kMaxParameters], target, mask;
  Noise binarization;
  Upstream grad_nll;
  Gradient gradients[kMaxParameters];
  CsrIndex csr;
};

// A tensor of three dimensions.
struct View3 {
  char* data = nullptr;  // null: the argument is absent
  DType dtype = DType::float32;
  std::int64_t stride[3] = {0, 0, 0};  // in elements
};

// One distribution over `classes` at each position of each sample. The target is a class number, or with `counts` a
// number for every class. Results are dense (batch, positions): nll; log-sum-exp of the logits; sum of the counts (of a
// class number: 1, or 0 where it is kIgnored) times exp(lse as rounded - lse).
// The CPU's loops are over the classes of one position, or with `across` over positions side by side; its tasks are of
// batch·positions x classes, or of batch x positions.
constexpr std::int64_t kIgnored = -100;  // torch's ignore_index

// Of some classes: the largest logit m, and with it Σ exp(l - m), Σ x·(l - m) and Σ x.
struct SoftmaxSums { double largest, exponentials, weighted, total; };

struct CategoricalForward {
  Tiling tiling;
  bool across = false;
  std::int64_t batch = 0, positions = 0, classes = 0;
  bool counts = false;
  View3 logits, target;  // (batch, positions, classes); a class number has no third dimension
  float *nll = nullptr, *lse = nullptr, *total = nullptr;
  SoftmaxSums* partial = nullptr;  // row_groups x column_segments, where several tasks share a row
  CsrIndex csr;  // of counts; the target's strides are those of its rows by sample and position
};
struct CategoricalBackward {
  Tiling tiling;
  bool across = false;
  std::int64_t batch = 0, positions = 0, classes = 0;
  bool counts = false;
  View3 logits, target, grad_logits;
  const float *lse = nullptr, *total = nullptr;
  View3 grad_nll;  // (batch, positions)
  CsrIndex csr;
};

// A mixture of discretized logistics at each pixel: formulas/mixture.h.
constexpr std::int64_t kMixtureBlock = 64;  // pixels whose parameters stay in the first-level cache
struct MixtureForward {
  Tiling tiling;
  std::int64_t batch = 0, channels = 0, components = 0, pixels = 0;
  View3 parameters, target, mask;  // (batch, channels or parameters, pixels); mask (batch, 1, pixels)
  Loss nll;                        // (batch) or (batch, pixels)
  View3 grad_parameters;  // on the CPU, if given: the gradient of the sum of nll, in the same pass
};
struct MixtureBackward {
  Tiling tiling;
  std::int64_t batch = 0, channels = 0, components = 0, pixels = 0;
  View3 parameters, target, mask, grad_parameters;
  Upstream grad_nll;
};

// log N(z_i; mu_j, exp logvar_j) of every row i and column j, dim by dim, and their logsumexp over the columns. Weights: of
// each column, or stratified: those of the row's own column, of the next one, and of all others.
constexpr int kPairwiseLanes = 16;  // columns are filled up to whole vectors of them
enum class PairwisePhase : int { prepare, main, finish };  // of a call on the CPU
struct PairwiseTerms {
  Tiling tiling;
  PairwisePhase phase = PairwisePhase::main;
  std::int64_t rows = 0, columns = 0, dims = 0;
  View3 z, mu, logvar;                 // (1, rows or columns, dims)
  const float* log_weights = nullptr;  // (columns)
  std::int64_t first = -1;             // the own column of row 0, -1: rows have none
  bool is_stratified = false;
  float log_other = 0, log_own = 0, log_next = 0;
  std::int64_t stride = 0;        // of what is prepared of the columns, whole vectors
  float* columns_data = nullptr;  // 3 x dims x stride
};
struct PairwiseForward : PairwiseTerms {
  float* joint = nullptr;  // (rows)
  View3 dims_out;          // (1, rows, dims)
};
struct PairwiseBackward : PairwiseTerms {
  const float *joint = nullptr, *grad_joint = nullptr;
  std::int64_t grad_joint_stride = 0;
  View3 dims_out, grad_dims, grad_z, grad_mu, grad_logvar;
  float* grad_log_weights = nullptr;
  bool has_weight_grad = false;
  std::int64_t groups = 0, partial_size = 0;
  float* partial = nullptr;  // groups x partial_size: what each group of rows adds to the columns' gradients
};

// Every instruction set's kernels; each runs one task.
struct Kernels {
  const char* isa;
#define VAE_FAST_KERNEL(name, Args) void (*name)(const Args&, const Task&);
#include "ops.def"
  // The random words of `count` counters from (group, row) on, four each: what the known-answer tests look at.
  void (*noise_words)(const std::int64_t* rng_state, std::int64_t group, std::int64_t row, std::int64_t count,
                      std::uint32_t* words);
};

}  // namespace vae_fast
