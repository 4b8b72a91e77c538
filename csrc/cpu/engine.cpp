#include "engine.h"

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "blocks/softmax.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace vae_fast {
namespace {

constexpr std::int64_t kTaskElements = 1 << 14;  // some 20 µs of work
constexpr std::int64_t kSerialElements = 1 << 14;  // below, waking the other threads costs more than it saves
constexpr std::int64_t kMaxGroups = 4096, kMaxSummedGroups = 32;
constexpr std::int64_t kMostTasks = 256;  // into which few rows are cut

// Of the op `pairwise`: rows of a task at least, and what the groups' parts of the columns' gradients may take of memory.
constexpr std::int64_t kPairwiseGroup = 32, kPairwiseScratch = 8 << 20, kPairwiseLeastGroups = 4;  // floats: 32 MB

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

// `sums`: whether a gradient is summed over the batch, which costs `columns` float64 a row group. `work`: that of a
// column, in elements.
Tiling tile(std::int64_t rows, std::int64_t columns, bool sums, std::int64_t block = kBlock, std::int64_t work = 1) {
  const std::int64_t task_columns = std::max<std::int64_t>(1, kTaskElements / work);
  Tiling t;
  t.rows = rows;
  t.columns = columns;
  t.rows_per_block = std::max<std::int64_t>(1, block / columns);
  // Long samples are cut into segments only where there are too few rows to share out.
  t.columns_per_segment =
      rows >= kMostTasks ? columns
                         : std::min(columns, round_up(std::max(task_columns, ceil_div(rows * columns, kMostTasks)), block));
  t.column_segments = ceil_div(columns, t.columns_per_segment);
  const std::int64_t most_groups = sums ? kMaxSummedGroups : kMaxGroups;
  const std::int64_t rows_per_task = std::max(task_columns / t.columns_per_segment, ceil_div(rows, most_groups));
  t.rows_per_group = round_up(std::max<std::int64_t>(1, rows_per_task), t.rows_per_block);
  t.row_groups = ceil_div(rows, t.rows_per_group);
  return t;
}

// The kernel that takes these arguments, of the instruction set in use.
#define VAE_FAST_KERNEL(name, Args) auto kernel_of(const Args&) { return kernels().name; }
#include "../api/ops.def"

std::int64_t task_count(const Tiling& t) { return t.row_groups * t.column_segments; }

Task task_of(const Tiling& t, std::int64_t i) {
  const std::int64_t group = i / t.column_segments, segment = i % t.column_segments;
  const std::int64_t row = group * t.rows_per_group, column = segment * t.columns_per_segment;
  return {group, segment, row, std::min(row + t.rows_per_group, t.rows), column, std::min(column + t.columns_per_segment, t.columns)};
}

template <class RunOne> void share_out(std::int64_t tasks, std::int64_t elements, int threads, RunOne run_one) {
  // All of torch's threads or none: a team of another size makes libgomp end threads and start them again.
  if (threads <= 1 || tasks == 1 || elements <= kSerialElements) {
    for (std::int64_t i = 0; i < tasks; ++i) run_one(i);
    return;
  }
  // Each thread has one stretch of the output: threads that take turns fault its pages in at half the speed.
#pragma omp parallel for num_threads(threads) schedule(static)
  for (std::int64_t i = 0; i < tasks; ++i) run_one(i);
}

template <class Args> void run_tasks(const Args& args, std::int64_t elements, int threads) {
  const auto kernel = kernel_of(args);
  share_out(task_count(args.tiling), elements, threads, [&](std::int64_t i) { kernel(args, task_of(args.tiling, i)); });
}

using Scratch = std::unique_ptr<double[]>;

Scratch prepare(Loss& sum, const Tiling& t, std::int64_t draws = 1) {
  if (!sum.value || t.column_segments == 1) return nullptr;
  Scratch scratch(new double[draws * t.rows * t.column_segments]);
  sum.partial = scratch.get();
  return scratch;
}
void finish(const Loss& sum, const Tiling& t, std::int64_t draws = 1) {
  if (!sum.partial) return;
  const double* partial = sum.partial;
  for (std::int64_t draw = 0; draw < draws; ++draw)
    for (std::int64_t row = 0; row < t.rows; ++row, partial += t.column_segments) {
      double total = 0;
      for (std::int64_t s = 0; s < t.column_segments; ++s) total += partial[s];
      sum.value[draw * sum.draw_stride + row * sum.stride] = static_cast<float>(total);
    }
}

// The sums over nothing.
void zero(const Loss& sum, std::int64_t rows, std::int64_t draws = 1) {
  for (std::int64_t draw = 0; sum.value && draw < draws; ++draw)
    for (std::int64_t row = 0; row < rows; ++row) sum.value[draw * sum.draw_stride + row * sum.stride] = 0.0f;
}
bool is_sum(const Gradient& g) { return g.view && g.reduction >= Reduction::batch; }
void zero(const Gradient& g, std::int64_t columns) {
  if (!is_sum(g)) return;
  std::fill_n(reinterpret_cast<float*>(g.view.data), g.reduction == Reduction::batch ? columns : 1, 0.0f);
}

std::int64_t partial_width(const Gradient& g, const Tiling& t) {
  return g.reduction == Reduction::batch ? t.columns : t.column_segments;
}
// `parts`: of the draws, each with row groups of its own.
Scratch prepare(Gradient& g, const Tiling& t, std::int64_t parts = 1) {
  if (!is_sum(g)) return nullptr;
  Scratch scratch(new double[parts * t.row_groups * partial_width(g, t)]());
  g.partial = scratch.get();
  return scratch;
}
void finish(const Gradient& g, const Tiling& t, std::int64_t parts = 1) {
  if (!g.partial) return;
  float* out = reinterpret_cast<float*>(g.view.data);
  const std::int64_t width = partial_width(g, t);
  double all = 0;
  for (std::int64_t c = 0; c < width; ++c) {
    double total = 0;
    for (std::int64_t group = 0; group < parts * t.row_groups; ++group) total += g.partial[group * width + c];
    if (g.reduction == Reduction::batch) out[c] = static_cast<float>(total);
    all += total;
  }
  if (g.reduction == Reduction::all) *out = static_cast<float>(all);
}

// Large fresh outputs cost more in page faults than the kernel in arithmetic; ask for huge pages before writing them.
void advise_huge_pages(char* begin, std::int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::int64_t huge = 2 << 20;
  if (bytes < 2 * huge) return;
  const std::int64_t from = round_up(reinterpret_cast<std::int64_t>(begin), huge);
  const std::int64_t to = (reinterpret_cast<std::int64_t>(begin) + bytes) / huge * huge;
  if (to > from) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);  // a hint: may fail
#else
  (void)begin, (void)bytes;
#endif
}

void advise_huge_pages(const View& view, const Tiling& t, std::int64_t draws = 1) {
  if (!view) return;
  std::int64_t last = (t.rows - 1) * view.row_stride + (draws - 1) * view.draw_stride;
  for (int d = 0; d < view.dims; ++d) last += (view.size[d] - 1) * view.stride[d];
  advise_huge_pages(view.data, (last + 1) * view.item_size());
}

// What a draw has of its own. `part`: of the draws, where it belongs.
void take_draw(LikelihoodForward& a, std::int64_t draw, std::int64_t part) {
  (void)part;
  for (View& v : a.parameters) v = v.draw(draw);
  a.nll.value += a.nll.value ? draw * a.nll.draw_stride : 0;
  a.nll.partial += a.nll.partial ? draw * a.tiling.rows * a.tiling.column_segments : 0;
  a.nll.elements = a.nll.elements.draw(draw);
}
void take_draw(LikelihoodBackward& a, std::int64_t draw, std::int64_t part) {
  for (View& v : a.parameters) v = v.draw(draw);
  a.grad_nll.value += a.grad_nll.value ? draw * a.grad_nll.draw_stride : 0;
  a.grad_nll.elements = a.grad_nll.elements.draw(draw);
  for (Gradient& g : a.gradients) {
    if (g.reduction == Reduction::none) g.view = g.view.draw(draw);
    if (g.reduction == Reduction::draws && draw == 0) g.reduction = Reduction::none;
    if (g.partial) g.partial += part * a.tiling.row_groups * partial_width(g, a.tiling);
  }
}

// The draws of a task are run one after the other, while its target is in the cache; in several parts only where there
// are few tasks. Each is computed as if it were alone, tile by tile, so that it has the same bits.
std::int64_t parts_of_draws(std::int64_t draws, const Tiling& t, std::int64_t most_tasks) {
  return std::max<std::int64_t>(1, std::min(draws, most_tasks / task_count(t)));
}
template <class Args> void run_draws(const Args& args, std::int64_t parts, int threads) {
  const Tiling& t = args.tiling;
  const std::int64_t draws = args.draws, elements = t.rows * t.columns * draws;
  if (draws == 1) return run_tasks(args, elements, threads);
  const auto kernel = kernel_of(args);
  share_out(task_count(t) * parts, elements, threads, [&](std::int64_t i) {
    const Task task = task_of(t, i / parts);
    const std::int64_t part = i % parts;
    for (std::int64_t draw = part * draws / parts; draw < (part + 1) * draws / parts; ++draw) {
      Args own = args;
      take_draw(own, draw, part);
      kernel(own, task);
    }
  });
}

void advise_huge_pages(const View3& t, std::int64_t batch, std::int64_t rows, std::int64_t columns) {
  const std::int64_t last = (batch - 1) * t.stride[0] + (rows - 1) * t.stride[1] + (columns - 1) * t.stride[2];
  advise_huge_pages(t.data, (last + 1) * size_of(t.dtype));
}

// One long sample instead of many short ones, where the strides of all tensors have it: (tensor, its own batch stride).
template <class Args, class... Tensors> void merge_samples(Args& a, Tensors&... tensors) {
  if (a.positions == 1) ((tensors.stride[1] = tensors.stride[0]), ...);
  else if (!((tensors.stride[0] == a.positions * tensors.stride[1]) && ...)) return;
  a.positions *= a.batch;
  a.batch = 1;
}

// Vectors lie across positions where there are too few classes to fill them, or where positions are nearer in memory.
// Along the classes forward has a sum to finish for every position, backward has nothing to pay but a last, half-filled
// vector; measured with AVX2.
constexpr std::int64_t few_classes(const CategoricalForward&) { return 48; }
constexpr std::int64_t few_classes(const CategoricalBackward&) { return 12; }

template <class Args> void cut(Args& a) {
  constexpr std::int64_t many_positions = 64;
  const std::int64_t step = std::abs(a.logits.stride[1]), class_step = std::abs(a.logits.stride[2]);
  a.across = !a.csr && (a.classes <= few_classes(a) || (step < class_step && a.positions >= many_positions));
  a.tiling = a.across ? tile(a.batch, a.positions, false, kBlock, std::max<std::int64_t>(1, a.classes))
                      : tile(a.batch * a.positions, a.classes, false);
}

}  // namespace

bool has_openmp() {
#if defined(_OPENMP)
  return true;
#else
  return false;
#endif
}

void run(LatentForward a, int threads) {
  const std::int64_t rows = a.tiling.rows, columns = a.tiling.columns;
  if (rows == 0 || columns == 0) return zero(a.kl, rows);
  a.tiling = tile(rows, columns, false);
  advise_huge_pages(a.z, a.tiling, a.draws);
  advise_huge_pages(a.kl.elements, a.tiling);
  const Scratch kl = prepare(a.kl, a.tiling);
  run_tasks(a, rows * columns * a.draws, threads);
  finish(a.kl, a.tiling);
}

void run(LatentBackward a, int threads) {
  const std::int64_t rows = a.tiling.rows, columns = a.tiling.columns;
  if (rows == 0 || columns == 0) return zero(a.grad_prior_mu, columns), zero(a.grad_prior_logvar, columns);
  a.tiling = tile(rows, columns, is_sum(a.grad_prior_mu) || is_sum(a.grad_prior_logvar));
  advise_huge_pages(a.grad_mu, a.tiling);
  advise_huge_pages(a.grad_logvar, a.tiling);
  const Scratch mu = prepare(a.grad_prior_mu, a.tiling), logvar = prepare(a.grad_prior_logvar, a.tiling);
  run_tasks(a, rows * columns * a.draws, threads);
  finish(a.grad_prior_mu, a.tiling);
  finish(a.grad_prior_logvar, a.tiling);
}

void run(ImportanceForward a, int threads) {
  const std::int64_t rows = a.tiling.rows, columns = a.tiling.columns, elements = rows * columns * a.draws;
  if (elements == 0) return zero(a.weights, rows, a.draws);
  a.tiling = tile(rows, columns, false);
  advise_huge_pages(a.z, a.tiling, a.draws);
  const Scratch weights = prepare(a.weights, a.tiling, a.draws);
  const std::int64_t tasks = task_count(a.tiling);
  const std::int64_t parts = std::min(a.draws, ceil_div(elements, kTaskElements * tasks));
  share_out(tasks * parts, elements, threads, [&](std::int64_t i) {
    ImportanceForward own = a;
    own.draw_begin = i % parts * a.draws / parts;
    own.draw_end = (i % parts + 1) * a.draws / parts;
    kernel_of(own)(own, task_of(a.tiling, i / parts));
  });
  finish(a.weights, a.tiling, a.draws);
}

void run(ImportanceBackward a, int threads) {
  const std::int64_t rows = a.tiling.rows, columns = a.tiling.columns;
  if (rows == 0 || columns == 0) return zero(a.grad_prior_mu, columns), zero(a.grad_prior_logvar, columns);
  a.tiling = tile(rows, columns, is_sum(a.grad_prior_mu) || is_sum(a.grad_prior_logvar), kBlock, a.draws);
  const Scratch mu = prepare(a.grad_prior_mu, a.tiling), logvar = prepare(a.grad_prior_logvar, a.tiling);
  run_tasks(a, rows * columns * a.draws, threads);
  finish(a.grad_prior_mu, a.tiling);
  finish(a.grad_prior_logvar, a.tiling);
}

void run(NoiseFill a, int threads) {
  const std::int64_t rows = a.tiling.rows, columns = a.tiling.columns;
  if (rows == 0 || columns == 0) return;
  a.tiling = tile(rows, columns, false);
  advise_huge_pages(a.eps, a.tiling, a.draws);
  run_tasks(a, rows * columns * a.draws, threads);
}

void run(LikelihoodForward a, int threads) {
  const std::int64_t rows = a.tiling.rows, columns = a.tiling.columns;
  if (rows == 0 || columns == 0) return zero(a.nll, rows, a.draws);
  a.tiling = tile(rows, columns, false);
  advise_huge_pages(a.nll.elements, a.tiling, a.draws);
  const Scratch nll = prepare(a.nll, a.tiling, a.draws);
  run_draws(a, parts_of_draws(a.draws, a.tiling, kMostTasks), threads);
  finish(a.nll, a.tiling, a.draws);
}

void run(LikelihoodBackward a, int threads) {
  const std::int64_t rows = a.tiling.rows, columns = a.tiling.columns;
  if (rows == 0 || columns == 0) {
    for (const Gradient& g : a.gradients) zero(g, columns);
    return;
  }
  bool sums = false, over_draws = false;
  for (Gradient& g : a.gradients) {
    if (a.draws == 1 && g.reduction == Reduction::draws) g.reduction = Reduction::none;
    sums = sums || is_sum(g);
    over_draws = over_draws || g.reduction == Reduction::draws;
  }
  a.tiling = tile(rows, columns, sums);
  // A task adds up all draws of its elements itself.
  const std::int64_t parts = over_draws ? 1 : parts_of_draws(a.draws, a.tiling, sums ? kMaxSummedGroups : kMostTasks);
  Scratch scratch[kMaxParameters];
  for (int p = 0; p < kMaxParameters; ++p) {
    if (!is_sum(a.gradients[p])) advise_huge_pages(a.gradients[p].view, a.tiling, a.draws);
    scratch[p] = prepare(a.gradients[p], a.tiling, parts);
  }
  run_draws(a, parts, threads);
  for (const Gradient& g : a.gradients) finish(g, a.tiling, parts);
}

void run(CategoricalForward a, int threads) {
  if (a.batch * a.positions == 0) return;
  merge_samples(a, a.logits, a.target);
  cut(a);
  const Tiling& t = a.tiling;
  std::unique_ptr<SoftmaxSums[]> partial;
  if (!a.across && t.column_segments > 1) partial.reset(new SoftmaxSums[t.rows * t.column_segments]);
  a.partial = partial.get();
  run_tasks(a, a.batch * a.positions * a.classes, threads);
  for (std::int64_t row = 0; a.partial && row < t.rows; ++row) {
    SoftmaxSums sums = partial[row * t.column_segments];
    for (std::int64_t s = 1; s < t.column_segments; ++s) add(sums, partial[row * t.column_segments + s]);
    finish(a, row / a.positions, row % a.positions, sums);
  }
}

void run(CategoricalBackward a, int threads) {
  if (a.batch * a.positions * a.classes == 0) return;
  advise_huge_pages(a.grad_logits, a.batch, a.positions, a.classes);
  merge_samples(a, a.logits, a.target, a.grad_logits, a.grad_nll);
  cut(a);
  run_tasks(a, a.batch * a.positions * a.classes, threads);
}

void run(MixtureForward a, int threads) {
  const std::int64_t work = (a.channels == 1 ? 3 : 10) * a.components;
  if (a.batch * a.pixels * work == 0) return zero(a.nll, a.batch);
  a.tiling = tile(a.batch, a.pixels, false, kMixtureBlock, work);
  const Scratch nll = prepare(a.nll, a.tiling);
  if (a.grad_parameters.data) advise_huge_pages(a.grad_parameters, a.batch, work, a.pixels);
  run_tasks(a, a.batch * a.pixels * work, threads);
  finish(a.nll, a.tiling);
}

void run(MixtureBackward a, int threads) {
  const std::int64_t work = (a.channels == 1 ? 3 : 10) * a.components;
  if (a.batch * a.pixels * work == 0) return;
  a.tiling = tile(a.batch, a.pixels, false, kMixtureBlock, work);
  advise_huge_pages(a.grad_parameters, a.batch, work, a.pixels);
  run_tasks(a, a.batch * a.pixels * work, threads);
}

namespace {

// Scratch for the columns, filled by tasks of their own.
template <class Args> std::unique_ptr<float[]> prepare_columns(Args& a, int threads) {
  a.stride = round_up(a.columns, kPairwiseLanes);
  std::unique_ptr<float[]> memory(new float[std::max<std::int64_t>(1, 3 * a.dims * a.stride)]);
  a.columns_data = memory.get();
  a.phase = PairwisePhase::prepare;
  a.tiling = tile(a.columns, std::max<std::int64_t>(1, a.dims), false);
  a.tiling.columns_per_segment = a.tiling.columns, a.tiling.column_segments = 1;
  run_tasks(a, a.columns * a.dims, threads);
  a.phase = PairwisePhase::main;
  return memory;
}

// Groups of rows, one task each.
void group_rows(Tiling& t, std::int64_t rows, std::int64_t most_groups) {
  t = Tiling();
  t.rows = rows, t.columns = t.columns_per_segment = 1;
  t.rows_per_group = std::max(kPairwiseGroup, round_up(ceil_div(rows, most_groups), kPairwiseGroup));
  t.row_groups = ceil_div(rows, t.rows_per_group);
}

}  // namespace

void run(PairwiseForward a, int threads) {
  if (a.rows == 0) return;
  const auto columns = a.columns > 0 ? prepare_columns(a, threads) : nullptr;
  group_rows(a.tiling, a.rows, kMaxGroups);
  run_tasks(a, a.rows * a.columns * (a.dims + 1), threads);
}

void run(PairwiseBackward a, int threads) {
  if (a.columns == 0 && a.rows == 0) return;
  const auto columns = a.columns > 0 ? prepare_columns(a, threads) : nullptr;
  a.partial_size = (2 * a.dims + 1) * a.stride;
  const std::int64_t fitting = kPairwiseScratch / std::max<std::int64_t>(1, a.partial_size);
  group_rows(a.tiling, a.rows, std::min(kMaxGroups, std::max(kPairwiseLeastGroups, fitting)));
  a.groups = a.tiling.row_groups;
  std::unique_ptr<float[]> partial(new float[std::max<std::int64_t>(1, a.groups * a.partial_size)]);
  a.partial = partial.get();
  run_tasks(a, a.rows * a.columns * (a.dims + 1), threads);
  a.phase = PairwisePhase::finish;
  group_rows(a.tiling, a.columns, kMaxGroups);
  run_tasks(a, a.columns * a.dims * a.groups, threads);
}

}  // namespace vae_fast
