// The op `likelihood` on the CPU: one pass forward, one backward that recomputes from the parameters and the target.
// Storing the gradient in the forward pass would move as many bytes (2N read and N written, then N read and N written
// again for the scaling by grad_nll) and hold N elements more until backward. Compiled once per instruction set.
#include <type_traits>

#include "../formulas/likelihoods.h"
#include "blocks/blocks.h"
#include "blocks/noise.h"
#include "isa_kernels.h"
#include "blocks/nonzero.h"

VAE_FAST_NAMESPACE_BEGIN

namespace {

// Of a sparse target where to put what is stored: nothing else of it is looked at.
template <class Args>
VAE_FAST_FN const float* read_target(const Args& a, const Block& block, Buffer& buffer, NoiseBuffer& noise_buffer) {
  return a.csr ? buffer.data : binarized(a.binarization, read(a.target, block, buffer), block, noise_buffer);
}

// 0 where the mask leaves an element out, whatever was there.
VAE_FAST_FN vf32 masked(const float* mask, std::int64_t i, int count, vf32 value) {
  return mask ? select(load_partial(mask + i, count) != vf32{}, value, vf32{}) : value;
}

VAE_FAST_FN void apply(const float* mask, const Block& block, float* values) {
  for_each_vector(block.size(), [&](std::int64_t i, int count) {
    store_partial(values + i, masked(mask, i, count, load_partial(values + i, count)), count);
  });
}

template <class Likelihood> constexpr bool kOfCounts = std::is_base_of_v<OfCounts<Likelihood>, Likelihood>;

// A likelihood with `far` has shorter formulas for a second parameter that is nearer to 0.
template <class Likelihood, class = void> struct HasFar : std::false_type {};
template <class Likelihood> struct HasFar<Likelihood, std::void_t<decltype(Likelihood::far)>> : std::true_type {};
template <class Likelihood, class Pass> VAE_FAST_FN void in_range(Pass pass) {
  if constexpr (HasFar<Likelihood>()) near_then_far(Likelihood::far, pass);
  else pass(std::false_type{});
}

template <class Likelihood> void forward(const LikelihoodForward& a, const Task& task) {
  static_assert(Likelihood::parameters <= kMaxParameters, "raise kMaxParameters in api/arguments.h");
  Losses nll(a.nll, a.tiling, task);
  CsrReader reader(a.csr, a.target);
  for_each_block(a.tiling, task, [&](const Block& block) {
    Buffer buffers[Likelihood::parameters], target_buffer, mask_buffer, terms;
    NoiseBuffer noise_buffer;
    const float* parameters[Likelihood::parameters];
    for (int p = 0; p < Likelihood::parameters; ++p) parameters[p] = read(a.parameters[p], block, buffers[p]);
    const float* target = read_target(a, block, target_buffer, noise_buffer);
    const float* mask = a.mask ? read(a.mask, block, mask_buffer) : nullptr;
    if constexpr (kOfCounts<Likelihood>) {
      const NonzeroIndex counted = a.csr ? NonzeroIndex(reader, block, task, a.tiling.columns, target_buffer.data)
                                         : NonzeroIndex(target, block.size());
      if (counted.count < block.size())
        for_each_two_vectors(block.size(), [&](std::int64_t i, int count, auto f) VAE_FAST_LAMBDA {
          decltype(f) at[Likelihood::parameters];
          for (int p = 0; p < Likelihood::parameters; ++p) at[p] = load_as(parameters[p] + i, count, f);
          store_as(terms.data + i, Likelihood::nll_of_zero(at), count);
        });
      for_each_two_vectors(counted.count, [&](std::int64_t i, int count, auto f) VAE_FAST_LAMBDA {
        const std::int32_t* index = counted.index + i;
        decltype(f) at[Likelihood::parameters];
        for (int p = 0; p < Likelihood::parameters; ++p) at[p] = gather_as(parameters[p], index, count, f);
        scatter_as(Likelihood::nll_of_count(at, gather_as(target, index, count, f)), terms.data, index, count);
      });
      if (mask) apply(mask, block, terms.data);
      return nll.add(block, terms.data);
    }
    float sum = 0;
    const bool one_sum = a.tiling.rows_per_block == 1 && !a.nll.elements;
    in_range<Likelihood>([&](auto near) VAE_FAST_LAMBDA {
      vf32 farthest{};
      const auto term = [&](std::int64_t i, int count) VAE_FAST_LAMBDA {
        vf32 at[Likelihood::parameters], value;
        for (int p = 0; p < Likelihood::parameters; ++p) at[p] = load_partial(parameters[p] + i, count);
        const vf32 x = load_partial(target + i, count);
        if constexpr (near()) value = Likelihood::template nll<true>(at, x), farthest = maximum(absolute(at[1]), farthest);
        else value = Likelihood::nll(at, x);
        return masked(mask, i, count, value);
      };
      if (one_sum) sum = sum_terms(block.columns, term);
      else for_each_vector(block.size(), [&](std::int64_t i, int count) { store(terms.data + i, term(i, count)); });
      return farthest;
    });
    if (one_sum) nll.add(block, sum);
    else nll.add(block, terms.data);
  });
}

template <class Likelihood> void backward(const LikelihoodBackward& a, const Task& task) {
  CsrReader reader(a.csr, a.target);
  for_each_block(a.tiling, task, [&](const Block& block) {
    Buffer buffers[Likelihood::parameters], target_buffer, mask_buffer, upstream_buffer, grad_buffers[Likelihood::parameters];
    NoiseBuffer noise_buffer;
    const float* parameters[Likelihood::parameters];
    float* grads[Likelihood::parameters];
    for (int p = 0; p < Likelihood::parameters; ++p) {
      parameters[p] = read(a.parameters[p], block, buffers[p]);
      grads[p] = gradient_destination(a.gradients[p], block, grad_buffers[p]);
    }
    const float* target = read_target(a, block, target_buffer, noise_buffer);
    const float* mask = a.mask ? read(a.mask, block, mask_buffer) : nullptr;
    const float* upstream = read(a.grad_nll, block, upstream_buffer);
    if constexpr (kOfCounts<Likelihood>) {
      const NonzeroIndex counted = a.csr ? NonzeroIndex(reader, block, task, a.tiling.columns, target_buffer.data)
                                         : NonzeroIndex(target, block.size());
      if (counted.count < block.size())
        for_each_two_vectors(block.size(), [&](std::int64_t i, int count, auto f) VAE_FAST_LAMBDA {
          decltype(f) at[Likelihood::parameters], by[Likelihood::parameters];
          for (int p = 0; p < Likelihood::parameters; ++p) at[p] = load_as(parameters[p] + i, count, f);
          Likelihood::gradient_of_zero(at, by);
          const auto g = load_as(upstream + i, count, f);
          for (int p = 0; p < Likelihood::parameters; ++p) store_as(grads[p] + i, g * by[p], count);
        });
      for_each_two_vectors(counted.count, [&](std::int64_t i, int count, auto f) VAE_FAST_LAMBDA {
        const std::int32_t* index = counted.index + i;
        decltype(f) at[Likelihood::parameters], by[Likelihood::parameters];
        for (int p = 0; p < Likelihood::parameters; ++p) at[p] = gather_as(parameters[p], index, count, f);
        Likelihood::gradient_of_count(at, gather_as(target, index, count, f), by);
        const auto g = gather_as(upstream, index, count, f);
        for (int p = 0; p < Likelihood::parameters; ++p) scatter_as(g * by[p], grads[p], index, count);
      });
      for (int p = 0; p < Likelihood::parameters && mask; ++p) apply(mask, block, grads[p]);
    } else in_range<Likelihood>([&](auto near) VAE_FAST_LAMBDA {
      vf32 farthest{};
      for_each_vector(block.size(), [&](std::int64_t i, int count) VAE_FAST_LAMBDA {
        vf32 at[Likelihood::parameters], by[Likelihood::parameters];
        for (int p = 0; p < Likelihood::parameters; ++p) at[p] = load_partial(parameters[p] + i, count);
        const vf32 x = load_partial(target + i, count), g = load_partial(upstream + i, count);
        if constexpr (near()) Likelihood::template gradient<true>(at, x, by), farthest = maximum(absolute(at[1]), farthest);
        else Likelihood::gradient(at, x, by);
        for (int p = 0; p < Likelihood::parameters; ++p) store_partial(grads[p] + i, masked(mask, i, count, g * by[p]), count);
      });
      return farthest;
    });
    for (int p = 0; p < Likelihood::parameters; ++p)
      if (wanted(a.gradients[p])) emit(a.gradients[p], a.tiling, task, block, grads[p]);
  });
}

}  // namespace

void likelihood_forward(const LikelihoodForward& a, const Task& task) {
  static constexpr decltype(&likelihood_forward) of_each[] = {
#define VAE_FAST_LIKELIHOOD(name, Struct, counts) forward<Struct>,
#include "../api/likelihoods.def"
  };
  of_each[a.likelihood](a, task);
}

void likelihood_backward(const LikelihoodBackward& a, const Task& task) {
  static constexpr decltype(&likelihood_backward) of_each[] = {
#define VAE_FAST_LIKELIHOOD(name, Struct, counts) backward<Struct>,
#include "../api/likelihoods.def"
  };
  of_each[a.likelihood](a, task);
}

VAE_FAST_NAMESPACE_END
