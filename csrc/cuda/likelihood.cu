// The op `likelihood` on the GPU: one launch forward, one backward that recomputes from the parameters and the target.
//
// Taking the gradient in the forward pass instead would store N elements there, and where the loss is not simply the
// sum or mean of all samples, read and write them once more to scale by grad_nll: 2N read, N written, then N read, N
// written. Recomputing reads 2N in each pass and writes N: as many bytes, N elements less held until backward, and no
// work for a forward pass without gradients. (For a mean-reduced loss a gradient scaled in the forward pass would save
// 2N of 5N, but what arrives from above is only known in the backward pass.)
#include "../formulas/likelihoods.h"
#include "csr.h"
#include "noise.h"
#include "reduce.h"

namespace vae_fast {
namespace {

// Those whose arithmetic hides behind their memory. They have the Wide form, and code for each element of a chunk, all in
// flight at once; the others keep to one copy of their long code, and wait for arithmetic, not for 16-bit accesses.
template <class Likelihood, class = void> constexpr bool kLight = false;
template <class Likelihood> constexpr bool kLight<Likelihood, std::void_t<decltype(Likelihood::is_light)>> = Likelihood::is_light;
// Those that have a shorter formula for all but rare elements, as is_common() tells.
template <class Likelihood, class = void> constexpr bool kHasCommon = false;
template <class Likelihood>
constexpr bool kHasCommon<Likelihood, std::void_t<decltype(&Likelihood::template is_common<float>)>> = true;
// Those of which every element of a chunk has its code: a loop costs 12 to 40 instructions an element (sm_90).
template <class Likelihood> constexpr bool kUnrolled = kLight<Likelihood>;
template <> constexpr bool kUnrolled<ContinuousBernoulli> = true;
template <> constexpr bool kUnrolled<DiscretizedLogistic> = true;
template <> constexpr bool kUnrolled<BernoulliProbs> = true;
template <class Likelihood> constexpr bool kBinarizes = false;
template <> constexpr bool kBinarizes<Bernoulli> = true;

// Blocks that share a processor: what its registers allow without spilling. Tried for five parameters: both components
// of the mixture in a loop that is not unrolled spills 80 bytes on sm_80, sums with two blocks 28 (2026-11-29).
template <class A, class Likelihood, bool kSums>
constexpr int kResident =
    Likelihood::parameters > 3 ? (kSums ? 1 : 2)
    : kSums || (Likelihood::parameters > 2 && !A::plain) ? 2
    : kLight<Likelihood> ? (A::dense && A::size == 4 ? 4 : 3)
    : kUnrolled<Likelihood> && A::size == 8 && Likelihood::parameters > 1 ? 2 : 3;  // 3 spill 4 bytes on sm_80

// Of backward's forms, those for draws: the others have no registers left for them (sm_90).
constexpr int kMostOfDense = 3;  // parameters
template <class A, class Likelihood>
constexpr bool kHasDraws = !A::plain && A::size == 4 && (!A::dense || Likelihood::parameters <= kMostOfDense);

// Forward, where all elements of a chunk are in flight: with 80 registers chunks of 8, of two parameters and of any strides
// spill 8 to 28 bytes; with 128 those of 8 and more than two parameters, and all of five, 4 to 28 (2026-11-29).
template <class A, class Likelihood>
constexpr int kResidentForward =
    !kHasCommon<Likelihood> ? kResident<A, Likelihood, false>
    : Likelihood::parameters > 3 ? 1 : A::plain && A::size == 4 && Likelihood::parameters < 2 ? 3 : 2;
constexpr int kMostOfEight = 2;  // parameters

// A chunk: parameters and target by element, and which elements count.
template <class A, class Likelihood> struct Chunk {
  float parameters[Likelihood::parameters][A::size], target[A::size];
  std::uint32_t kept;
};

// Where a row of the inputs begins.
template <class A, class Likelihood> struct Starts {
  RowStart<A> parameters[Likelihood::parameters], target;
  template <class Args> VAE_FAST_DEVICE Starts(const Args& a, std::int64_t row, std::int64_t draw) : target(start_of<A>(a.target, row)) {
#pragma unroll
    for (int p = 0; p < Likelihood::parameters; ++p) parameters[p] = start_of<A>(a.parameters[p], row, draw);
  }
};

template <class A, class Likelihood, class Args>
VAE_FAST_DEVICE Chunk<A, Likelihood> load_chunk(const Args& a, const Starts<A, Likelihood>& in, std::int64_t row, Column<A> column, int count) {
  Chunk<A, Likelihood> chunk;
  Raw<A> raw[Likelihood::parameters], raw_mask = {};
#pragma unroll
  for (int p = 0; p < Likelihood::parameters; ++p)
    raw[p] = p == 0 ? load_raw<A>(a.parameters[p], in.parameters[p], column, count)
                    : load_raw<A, Content::reals, true>(a.parameters[p], in.parameters[p], column, count);
  if constexpr (!A::plain)
    if (a.mask) raw_mask = load_raw<A, Content::flags>(a.mask, row * a.mask.row_stride, column, count);
  if constexpr (kIsSparse<A>) load_csr(a.csr, a.target, row, a.tiling.columns, column, count, chunk.target);
  else load<A, Content::targets>(a.target, in.target, column, count, chunk.target);
#pragma unroll
  for (int p = 0; p < Likelihood::parameters; ++p) unpack<A>(a.parameters[p], raw[p], chunk.parameters[p]);
  chunk.kept = A::plain ? 0xFFu : kept_of<A>(a.mask, raw_mask, count);
  if constexpr (kBinarizes<Likelihood> && !A::plain)
    if (a.binarization.rng_state) binarize<A>(a.binarization, row, column, chunk.target);
  return chunk;
}

template <int kSize> VAE_FAST_DEVICE void rotate(float (&v)[kSize], float last) {
#pragma unroll
  for (int i = 1; i < kSize; ++i) v[i - 1] = v[i];
  v[kSize - 1] = last;
}

// Calls body(parameters, target, kept) for one element after the other; what it leaves in `parameters` takes their place.
// One copy of the code: the elements move through the same registers, since an index into them would need memory.
template <class F, class A, class Likelihood, class Body> VAE_FAST_DEVICE void for_each_element(Chunk<A, Likelihood>& chunk, Body body) {
#pragma unroll(kUnrolled<Likelihood> ? A::size : 1)
  for (int i = 0; i < A::size; ++i) {
    F parameters[Likelihood::parameters];
#pragma unroll
    for (int p = 0; p < Likelihood::parameters; ++p) parameters[p] = chunk.parameters[p][0];
    body(parameters, F(chunk.target[0]), (chunk.kept >> i & 1) != 0);
#pragma unroll
    for (int p = 0; p < Likelihood::parameters; ++p) rotate(chunk.parameters[p], value(parameters[p]));
    rotate(chunk.target, 0.0f);
  }
}

// The sum, and each in `terms`.
template <class A, class Likelihood> VAE_FAST_DEVICE float sum_of_nlls(Chunk<A, Likelihood>& chunk, float (&terms)[A::size]) {
  float sum = 0;
  if constexpr (kHasCommon<Likelihood>) {
    using F = std::conditional_t<std::is_same_v<Arithmetic<A>, float>, Full, Arithmetic<A>>;
    F parameters[A::size][Likelihood::parameters];
    bool are_common = true;
#pragma unroll
    for (int i = 0; i < A::size; ++i) {
#pragma unroll
      for (int p = 0; p < Likelihood::parameters; ++p) parameters[i][p] = chunk.parameters[p][i];
      are_common = are_common & (Likelihood::is_common(parameters[i], F(chunk.target[i])) | !(chunk.kept >> i & 1));
    }
    if (are_common) {
#pragma unroll
      for (int i = 0; i < A::size; ++i) {
        const float term = value(Likelihood::nll_common(parameters[i], F(chunk.target[i])));
        const bool kept = (chunk.kept >> i & 1) != 0;
        if (kept) sum += term;
        if constexpr (!A::plain) terms[i] = kept ? term : 0.0f;
      }
      return sum;
    }
  }
  for_each_element<std::conditional_t<kHasCommon<Likelihood>, float, Arithmetic<A>>>(chunk, [&](const auto* parameters, auto target, bool kept) {
    const float term = value(Likelihood::nll(parameters, target));
    if (kept) sum += term;
    if constexpr (!A::plain) rotate(terms, kept ? term : 0.0f);
  });
  return sum;
}

template <class A, class Likelihood>
__global__ void __launch_bounds__(kThreads, kResidentForward<A, Likelihood>)
likelihood_forward(const __grid_constant__ LikelihoodForward a, const __grid_constant__ Grid grid) {
  Place at = place(grid);
  const std::int64_t draw = A::plain ? 0 : at.draw_part;  // a block each; those of a row are neighbours and share its target
  for (int step = 0; step < grid.row_steps; ++step, at.row += grid.rows_at_once()) {
    double nll = 0;
    if (const std::int64_t row = at.row; row < at.row_end) {
      const Starts<A, Likelihood> in(a, row, draw);
      for_each_chunk<A>(grid, at, [&](auto column, int count) {
        auto chunk = load_chunk<A, Likelihood>(a, in, row, column, count);
        float terms[A::size];
        nll += sum_of_nlls(chunk, terms);
        if constexpr (!A::plain)
          if (a.nll.elements) store<A>(a.nll.elements, start_of<A>(a.nll.elements, row, draw), column, count, terms);
      });
    }
    if (A::plain || a.nll.value) reduce_row(a.nll, grid, at, nll, draw);
  }
}

template <class A, class Likelihood, bool kSums>
__global__ void __launch_bounds__(kThreads, kResident<A, Likelihood, kSums>)
likelihood_backward(const __grid_constant__ LikelihoodBackward a, const __grid_constant__ Grid grid) {
  const Place at = place(grid);
  double sums[Likelihood::parameters][A::size] = {};
  const auto run_draw = [&](int draw) {
    for (std::int64_t row = at.row; row < at.row_end; row += grid.rows_at_once()) {
      const float of_row = of_sample(a.grad_nll, row, draw);
      const Starts<A, Likelihood> in(a, row, draw);
      RowStart<A> out[Likelihood::parameters];
#pragma unroll
      for (int p = 0; p < Likelihood::parameters; ++p) out[p] = start_of<A>(a.gradients[p].view, row, draw);
      for_each_chunk<A>(grid, at, [&](auto column, int count) {
        auto chunk = load_chunk<A, Likelihood>(a, in, row, column, count);
        float upstream[A::size];
        load_upstream<A>(a.grad_nll, of_row, row, column, count, upstream, draw);
        for_each_element<Arithmetic<A>>(chunk, [&](auto* parameters, auto target, bool kept) {
          decltype(target) by[Likelihood::parameters];
          Likelihood::gradient(parameters, target, by);
#pragma unroll
          for (int p = 0; p < Likelihood::parameters; ++p) parameters[p] = kept ? upstream[0] * value(by[p]) : 0.0f;
          if constexpr (!A::plain) rotate(upstream, 0.0f);
        });
#pragma unroll
        for (int p = 0; p < Likelihood::parameters; ++p)
          emit<A, kSums, kHasDraws<A, Likelihood>>(a.gradients[p], out[p], column, count, chunk.parameters[p], sums[p], draw);
      });
    }
  };
  if constexpr (!kHasDraws<A, Likelihood>) {
    run_draw(0);
  } else {
    int draw = static_cast<int>(at.draw_part);  // the one of this block, or all of them
    do run_draw(draw);
    while (++draw < grid.draws_per_part);
  }
  if constexpr (kSums) {
#pragma unroll
    for (int p = 0; p < Likelihood::parameters; ++p) reduce_gradient<A>(a.gradients[p], grid, at, p, sums[p]);
  }
}

// Calls body(Likelihood{}) for the likelihood of that place in likelihoods.def.
template <class Body> void with_likelihood(int place, Body body) {
  int number = 0;
#define VAE_FAST_LIKELIHOOD(name, Struct, counts) \
  if (place == number++) return body(Struct{});
#include "../api/likelihoods.def"
  throw std::invalid_argument("likelihood: there is none of number " + std::to_string(place));
}

// Calls body(Access{}, Likelihood{}).
template <bool kMayBeWide, int kMost = kMaxParameters, class Body> void with_kernel(AccessKind kind, int likelihood, Body body) {
  with_likelihood(likelihood, [&](auto m) {
    const auto of_likelihood = [&](auto access) { body(access, m); };
    with_access<kMayBeWide && kLight<decltype(m)>, kMayBeWide && decltype(m)::parameters <= kMost>(kind, of_likelihood);
  });
}

// The same for a sparse target.
template <class Body> void with_sparse_kernel(int likelihood, Body body) {
  with_likelihood(likelihood, [&](auto m) {
    if constexpr (std::is_base_of_v<OfCounts<decltype(m)>, decltype(m)>) body(SparseTarget{}, m);
    else throw std::invalid_argument("likelihood: this one takes no sparse target");
  });
}

bool may_be_wide(int likelihood) {
  bool light = false;
  with_likelihood(likelihood, [&](auto m) { light = kLight<decltype(m)>; });
  return light;
}

int parameters_of(int likelihood) {
  int parameters = 0;
  with_likelihood(likelihood, [&](auto m) { parameters = decltype(m)::parameters; });
  return parameters;
}

void check_binarization(const Noise& binarization, int likelihood) {
  if (!binarization.rng_state) return;
  with_likelihood(likelihood, [](auto m) {
    if (!kBinarizes<decltype(m)>) throw std::invalid_argument("likelihood: this one does not binarize its target");
  });
}

// What a plain form has no code for.
template <class Arguments> bool is_plain(const Arguments& a, const View& elements) {
  return !a.mask && !a.binarization.rng_state && !elements && a.draws == 1;
}
constexpr std::uint32_t kConstants = (1u << kMaxParameters) - 2;  // a parameter after the first, perhaps one number for all

// The first kMaxParameters + 3 views: parameters, target, mask, and the loss or what comes from above by element.
template <class Arguments> void list_inputs(const Arguments& a, const View& elements, const View** views) {
  for (int p = 0; p < kMaxParameters; ++p) views[p] = &a.parameters[p];
  views[kMaxParameters] = &a.target;
  views[kMaxParameters + 1] = &a.mask;
  views[kMaxParameters + 2] = &elements;
}

}  // namespace

void run(LikelihoodForward a, const Stream& stream, const Allocate& allocate) {
  const std::int64_t rows = a.tiling.rows, columns = a.tiling.columns;
  check_binarization(a.binarization, a.likelihood);
  if (rows * a.draws == 0) return;
  const View* views[kMaxParameters + 3];
  list_inputs(a, a.nll.elements, views);
  AccessKind kind = choose_access(views, rows, columns, a.draws, {is_plain(a, a.nll.elements), may_be_wide(a.likelihood), kConstants,
                                                                    parameters_of(a.likelihood) <= kMostOfEight});
  if (a.csr) kind = AccessKind::any;
  Grid grid = tile_rows(rows, columns, chunk_size(kind));
  follow_memory(grid, kind, views);
  grid.draw_parts = a.draws;
  share(a.nll, grid, allocate, a.draws);
  const auto run_kernel = [&](auto access, auto likelihood) {
    launch("likelihood_forward", likelihood_forward<decltype(access), decltype(likelihood)>, stream, grid.blocks(), kThreads, a, grid);
  };
  if (a.csr) with_sparse_kernel(a.likelihood, run_kernel);
  else with_kernel<true, kMostOfEight>(kind, a.likelihood, run_kernel);
}

void run(LikelihoodBackward a, const Stream& stream, const Allocate& allocate) {
  const std::int64_t rows = a.tiling.rows, columns = a.tiling.columns;
  check_binarization(a.binarization, a.likelihood);
  Gradient* summed[kMaxParameters];
  bool over_draws = false;
  for (int p = 0; p < kMaxParameters; ++p) {
    summed[p] = &a.gradients[p];
    if (a.draws == 1 && a.gradients[p].reduction == Reduction::draws) a.gradients[p].reduction = Reduction::none;
    over_draws = over_draws || a.gradients[p].reduction == Reduction::draws;
  }
  const bool sums = any_sum(summed);
  if (rows * columns == 0 && !sums) return;
  if (sums && over_draws) {  // a launch for each kind
    LikelihoodBackward other = a;
    for (int p = 0; p < kMaxParameters; ++p)
      (a.gradients[p].reduction == Reduction::draws ? a : other).gradients[p] = {};
    run(other, stream, allocate);
    over_draws = false;
  }
  const View* views[2 * kMaxParameters + 3];
  list_inputs(a, a.grad_nll.elements, views);
  for (int p = 0; p < kMaxParameters; ++p) views[kMaxParameters + 3 + p] = per_element(a.gradients[p]);
  AccessKind kind = choose_access(views, rows, columns, a.draws, {is_plain(a, a.grad_nll.elements), !sums && a.draws == 1 && may_be_wide(a.likelihood),
                                                                   kConstants, !sums});
  if (a.csr || (a.draws > 1 && parameters_of(a.likelihood) > kMostOfDense)) kind = AccessKind::any;
  Grid grid = sums ? tile_columns(rows, columns, chunk_size(kind)) : tile_rows(rows, columns, chunk_size(kind));
  follow_memory(grid, kind, views);
  // A block adds up all draws of its elements.
  (sums || over_draws ? grid.draws_per_part : grid.draw_parts) = a.draws;
  if (sums) share(summed, grid, chunk_size(kind), allocate);
  const auto run_kernel = [&](auto kernel) { launch("likelihood_backward", kernel, stream, grid.blocks(), kThreads, a, grid); };
  const auto run_sums = [&](auto access, auto likelihood) { run_kernel(likelihood_backward<decltype(access), decltype(likelihood), true>); };
  const auto run_each = [&](auto access, auto likelihood) { run_kernel(likelihood_backward<decltype(access), decltype(likelihood), false>); };
  if (a.csr && sums) with_sparse_kernel(a.likelihood, run_sums);
  else if (a.csr) with_sparse_kernel(a.likelihood, run_each);
  else if (sums) with_kernel<false>(kind, a.likelihood, run_sums);
  else with_kernel<true>(kind, a.likelihood, run_each);
}

}  // namespace vae_fast
