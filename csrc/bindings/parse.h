// What the native engines' bindings share: from Python's (address, dtype code, strides), None if absent, to the kernels'
// arguments, and the ops themselves. Does not link libtorch.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <iterator>
#include <stdexcept>
#include <string>

#include "../api/arguments.h"
#include "../formulas/likelihoods.h"

namespace vae_fast {
namespace py = pybind11;

// (batch, ...) and the number of elements of one sample.
struct Shape {
  std::int64_t rows = 0, columns = 1;
  std::vector<std::int64_t> sizes;
  explicit Shape(const py::tuple& shape) {
    for (py::handle size : shape) sizes.push_back(size.cast<std::int64_t>());
    rows = sizes.at(0);
    for (std::size_t d = 1; d < sizes.size(); ++d) columns *= sizes[d];
  }
};

inline View view_of(const py::object& tensor, const Shape& shape) {
  View v;
  if (tensor.is_none()) return v;
  const py::tuple parts = tensor.cast<py::tuple>();
  const py::tuple strides = parts[2].cast<py::tuple>();
  const std::size_t dims = shape.sizes.size();
  v.data = reinterpret_cast<char*>(parts[0].cast<std::uintptr_t>());
  v.dtype = static_cast<DType>(parts[1].cast<int>());
  const std::size_t lead = strides.size() - dims;  // 1 for (num_samples, batch, ...)
  if (lead == 1) v.draw_stride = strides[0].cast<std::int64_t>();
  v.row_stride = strides[lead].cast<std::int64_t>();
  for (std::size_t d = 1; d < dims; ++d) {
    const std::int64_t size = shape.sizes[d], stride = strides[lead + d].cast<std::int64_t>();
    if (size == 1) continue;
    if (v.dims > 0 && v.stride[v.dims - 1] == stride * size) {
      v.size[v.dims - 1] *= size;
      v.stride[v.dims - 1] = stride;
      continue;
    }
    if (v.dims == kMaxDims) throw std::invalid_argument("a sample has more than 8 dimensions that strides keep apart");
    v.size[v.dims] = size;
    v.stride[v.dims++] = stride;
  }
  return v;
}

// Of two or three dimensions; a missing third has stride 0.
inline View3 view3_of(const py::object& tensor) {
  View3 v;
  if (tensor.is_none()) return v;
  const py::tuple parts = tensor.cast<py::tuple>();
  const py::tuple strides = parts[2].cast<py::tuple>();
  v.data = reinterpret_cast<char*>(parts[0].cast<std::uintptr_t>());
  v.dtype = static_cast<DType>(parts[1].cast<int>());
  for (std::size_t d = 0; d < strides.size() && d < 3; ++d) v.stride[d] = strides[d].cast<std::int64_t>();
  return v;
}
inline std::size_t dims_of(const py::object& tensor) { return tensor.cast<py::tuple>()[2].cast<py::tuple>().size(); }

// Where a target's counts are, in the second half of (address, dtype code, strides, crow, col, whether these are int64): of
// a dense target there is none.
inline CsrIndex csr_of(const py::object& target) {
  const py::tuple parts = target.cast<py::tuple>();
  if (parts.size() == 3) return {};
  return {reinterpret_cast<const char*>(parts[3].cast<std::uintptr_t>()), reinterpret_cast<const char*>(parts[4].cast<std::uintptr_t>()),
          parts[5].cast<bool>()};
}
// Of a target of counts or not, sparse or not.
template <class Args> void set_target(Args& a, const py::object& target, const Shape& shape) {
  a.csr = csr_of(target);
  if (!a.csr) {
    a.target = view_of(target, shape);
    return;
  }
  const py::tuple parts = target.cast<py::tuple>();
  a.target.data = reinterpret_cast<char*>(parts[0].cast<std::uintptr_t>());
  a.target.dtype = static_cast<DType>(parts[1].cast<int>());
}

// A dense float32 result.
inline float* floats_of(const py::object& tensor) {
  return reinterpret_cast<float*>(tensor.cast<py::tuple>()[0].cast<std::uintptr_t>());
}

// A Loss or an Upstream: with one dimension the samples', with the shape's the elements'. With draws, after theirs.
template <class T> T loss_of(const py::object& tensor, const Shape& shape, bool has_draws = false) {
  T loss;
  if (tensor.is_none()) return loss;
  const py::tuple parts = tensor.cast<py::tuple>(), strides = parts[2].cast<py::tuple>();
  const std::size_t lead = has_draws ? 1 : 0;
  if (strides.size() > lead + 1) {
    loss.elements = view_of(tensor, shape);
  } else {
    loss.value = reinterpret_cast<float*>(parts[0].cast<std::uintptr_t>());
    loss.stride = strides[lead].cast<std::int64_t>();
    if (has_draws) loss.draw_stride = strides[0].cast<std::int64_t>();
  }
  return loss;
}

// A summed gradient is float32 and has fewer dimensions: with draws those of the shape; dense, those of a sample, or none.
inline Gradient gradient_of(const py::object& tensor, const Shape& shape, bool has_draws = false) {
  Gradient g;
  if (tensor.is_none()) return g;
  const py::tuple parts = tensor.cast<py::tuple>();
  const std::size_t dims = parts[2].cast<py::tuple>().size();
  if (dims >= shape.sizes.size()) {
    g.view = view_of(tensor, shape);
    if (has_draws && dims == shape.sizes.size()) g.reduction = Reduction::draws;
  } else {
    g.view.data = reinterpret_cast<char*>(parts[0].cast<std::uintptr_t>());
    g.reduction = dims == 0 ? Reduction::all : Reduction::batch;
  }
  return g;
}

// words: of one state, 2 or 4; 0 for a state per sample.
inline Noise noise_of(std::uintptr_t rng_state, int words, const py::object& given, const Shape& shape) {
  return {view_of(given, shape), reinterpret_cast<const std::int64_t*>(rng_state), words == 0, words == 4, shape.rows};
}

inline Clamp clamp_of(const py::object& bounds) {
  if (bounds.is_none()) return {};
  const py::tuple pair = bounds.cast<py::tuple>();
  return {true, pair[0].cast<float>(), pair[1].cast<float>()};
}

// (parametrization, epsilon, soft clamp or None, whether the prior is read likewise), None for a plain log-variance.
inline Form form_of(const py::object& form) {
  if (form.is_none()) return {};
  const py::tuple parts = form.cast<py::tuple>();
  return {static_cast<Parametrization>(parts[0].cast<int>()), parts[1].cast<float>(), parts[2].is_none() ? 0.0f : parts[2].cast<float>(),
          parts[3].cast<bool>()};
}

template <class Args> Args of_shape(const Shape& shape) {
  Args a;
  a.tiling.rows = shape.rows;
  a.tiling.columns = shape.columns;
  return a;
}

template <class Args>
Args latent_of(const Shape& shape, std::int64_t draws, const py::object& mu, const py::object& logvar, const py::object& prior_mu,
               const py::object& prior_logvar, const Noise& noise, const py::object& bounds, const py::object& form,
               const py::object& scale) {
  auto a = of_shape<Args>(shape);
  a.mu = view_of(mu, shape);
  a.logvar = view_of(logvar, shape);
  a.prior_mu = view_of(prior_mu, shape);
  a.prior_logvar = view_of(prior_logvar, shape);
  a.noise = noise;
  a.draws = draws;
  a.clamp = clamp_of(bounds);
  a.form = form_of(form);
  a.scale = view_of(scale, shape);
  return a;
}

template <class Engine>
void latent_forward(const py::object& where, const py::tuple& sizes, std::int64_t draws, const py::object& mu, const py::object& logvar,
                    const py::object& prior_mu, const py::object& prior_logvar, std::uintptr_t rng_state, int state_words,
                    const py::object& given, const py::object& bounds, const py::object& form,
                    const py::object& shift, const py::object& scale, const py::object& z, const py::object& kl) {
  const Shape shape(sizes);
  const Noise noise = noise_of(rng_state, state_words, given, shape);
  auto a = latent_of<LatentForward>(shape, draws, mu, logvar, prior_mu, prior_logvar, noise, bounds, form, scale);
  a.shift = view_of(shift, shape);
  a.z = view_of(z, shape);
  a.kl = loss_of<Loss>(kl, shape);
  Engine(where).run(a);
}

template <class Engine>
void latent_backward(const py::object& where, const py::tuple& sizes, std::int64_t draws, const py::object& grad_z, const py::object& grad_kl,
                     const py::object& mu, const py::object& logvar, const py::object& prior_mu, const py::object& prior_logvar,
                     std::uintptr_t rng_state, int state_words, const py::object& given,
                     const py::object& bounds, const py::object& form, const py::object& scale, const py::object& grad_mu, const py::object& grad_logvar,
                     const py::object& grad_prior_mu, const py::object& grad_prior_logvar) {
  const Shape shape(sizes);
  const Noise noise = noise_of(rng_state, state_words, given, shape);
  auto a = latent_of<LatentBackward>(shape, draws, mu, logvar, prior_mu, prior_logvar, noise, bounds, form, scale);
  a.grad_z = view_of(grad_z, shape);
  a.grad_kl = loss_of<Upstream>(grad_kl, shape);
  a.grad_mu = view_of(grad_mu, shape);
  a.grad_logvar = view_of(grad_logvar, shape);
  a.grad_prior_mu = gradient_of(grad_prior_mu, shape);
  a.grad_prior_logvar = gradient_of(grad_prior_logvar, shape);
  Engine(where).run(a);
}

template <class Args>
Args importance_of(const Shape& shape, const py::tuple& draws, const py::object& mu, const py::object& logvar, const py::object& prior_mu,
                   const py::object& prior_logvar, const Noise& noise, const py::object& bounds) {
  auto a = of_shape<Args>(shape);
  a.draws = draws[0].cast<std::int64_t>();
  a.first_draw = draws[1].cast<std::int64_t>();
  a.mu = view_of(mu, shape);
  a.logvar = view_of(logvar, shape);
  a.prior_mu = view_of(prior_mu, shape);
  a.prior_logvar = view_of(prior_logvar, shape);
  a.noise = noise;
  a.clamp = clamp_of(bounds);
  return a;
}

// draws: how many, and the first of them.
template <class Engine>
void importance_forward(const py::object& where, const py::tuple& sizes, const py::tuple& draws, const py::object& mu,
                        const py::object& logvar, const py::object& prior_mu, const py::object& prior_logvar,
                        std::uintptr_t rng_state, int state_words, const py::object& given, const py::object& bounds,
                        const py::object& z, const py::object& weights) {
  const Shape shape(sizes);
  const Noise noise = noise_of(rng_state, state_words, given, shape);
  auto a = importance_of<ImportanceForward>(shape, draws, mu, logvar, prior_mu, prior_logvar, noise, bounds);
  a.z = view_of(z, shape);
  a.weights = loss_of<Loss>(weights, shape, true);
  Engine(where).run(a);
}

template <class Engine>
void importance_backward(const py::object& where, const py::tuple& sizes, const py::tuple& draws, const py::object& grad_z,
                         const py::object& grad_weights, const py::object& mu, const py::object& logvar,
                         const py::object& prior_mu, const py::object& prior_logvar, std::uintptr_t rng_state, int state_words,
                         const py::object& given, const py::object& bounds, bool path_derivative, const py::object& grad_mu,
                         const py::object& grad_logvar, const py::object& grad_prior_mu, const py::object& grad_prior_logvar) {
  const Shape shape(sizes);
  const Noise noise = noise_of(rng_state, state_words, given, shape);
  auto a = importance_of<ImportanceBackward>(shape, draws, mu, logvar, prior_mu, prior_logvar, noise, bounds);
  a.grad_z = view_of(grad_z, shape);
  a.grad_weights = loss_of<Upstream>(grad_weights, shape, true);
  a.path_derivative = path_derivative;
  a.grad_mu = view_of(grad_mu, shape);
  a.grad_logvar = view_of(grad_logvar, shape);
  a.grad_prior_mu = gradient_of(grad_prior_mu, shape);
  a.grad_prior_logvar = gradient_of(grad_prior_logvar, shape);
  Engine(where).run(a);
}

template <class Engine>
void noise_fill(const py::object& where, const py::tuple& sizes, std::int64_t draws, std::uintptr_t rng_state, int state_words,
                const py::object& eps) {
  const Shape shape(sizes);
  auto a = of_shape<NoiseFill>(shape);
  a.noise = noise_of(rng_state, state_words, py::none(), shape);
  a.draws = draws;
  a.eps = view_of(eps, shape);
  Engine(where).run(a);
}

// A kernel reads as many as its formula has.
inline void check_parameters(int likelihood, const py::tuple& parameters) {
  constexpr std::size_t expected[] = {
#define VAE_FAST_LIKELIHOOD(name, Struct, counts) Struct::parameters,
#include "../api/likelihoods.def"
  };
  if (likelihood < 0 || likelihood >= static_cast<int>(std::size(expected)))
    throw std::invalid_argument("likelihood: there is none of number " + std::to_string(likelihood));
  std::size_t given = 0;
  for (py::handle p : parameters) given += !p.is_none();
  if (given != expected[likelihood] || given != parameters.size())
    throw std::invalid_argument("likelihood: expected " + std::to_string(expected[likelihood]) + " parameters, but got " + std::to_string(given));
}

// draws: their number, None where no parameter has any.
template <class Engine>
void likelihood_forward(const py::object& where, const py::tuple& sizes, const py::object& draws, int likelihood, const py::tuple& parameters, const py::object& target,
                        const py::object& mask, std::uintptr_t rng_state, int state_words, const py::object& nll) {
  check_parameters(likelihood, parameters);
  const Shape shape(sizes);
  auto a = of_shape<LikelihoodForward>(shape);
  if (!draws.is_none()) a.draws = draws.cast<std::int64_t>();
  a.likelihood = likelihood;
  for (std::size_t p = 0; p < parameters.size(); ++p) a.parameters[p] = view_of(parameters[p], shape);
  set_target(a, target, shape);
  a.mask = view_of(mask, shape);
  a.binarization = noise_of(rng_state, state_words, py::none(), shape);
  a.nll = loss_of<Loss>(nll, shape, !draws.is_none());
  Engine(where).run(a);
}

template <class Engine>
void likelihood_backward(const py::object& where, const py::tuple& sizes, const py::object& draws, int likelihood, const py::tuple& parameters, const py::object& target,
                         const py::object& mask, std::uintptr_t rng_state, int state_words,
                         const py::object& grad_nll, const py::tuple& gradients) {
  check_parameters(likelihood, parameters);
  if (gradients.size() != parameters.size()) throw std::invalid_argument("likelihood: expected a gradient, or None, for each parameter");
  const Shape shape(sizes);
  auto a = of_shape<LikelihoodBackward>(shape);
  if (!draws.is_none()) a.draws = draws.cast<std::int64_t>();
  a.likelihood = likelihood;
  for (std::size_t p = 0; p < parameters.size(); ++p) {
    a.parameters[p] = view_of(parameters[p], shape);
    a.gradients[p] = gradient_of(gradients[p], shape, !draws.is_none());
  }
  set_target(a, target, shape);
  a.mask = view_of(mask, shape);
  a.binarization = noise_of(rng_state, state_words, py::none(), shape);
  a.grad_nll = loss_of<Upstream>(grad_nll, shape, !draws.is_none());
  Engine(where).run(a);
}

// Sizes are (batch, positions, classes).
template <class Args> Args categorical_of(const Shape& shape, const py::object& logits, const py::object& target) {
  Args a;
  a.batch = shape.sizes.at(0), a.positions = shape.sizes.at(1), a.classes = shape.sizes.at(2);
  a.csr = csr_of(target);
  a.counts = a.csr || dims_of(target) == 3;
  a.logits = view3_of(logits);
  a.target = view3_of(target);
  return a;
}

template <class Engine>
void categorical_forward(const py::object& where, const py::tuple& sizes, const py::object& logits, const py::object& target,
                         const py::object& nll, const py::object& lse, const py::object& total) {
  auto a = categorical_of<CategoricalForward>(Shape(sizes), logits, target);
  a.nll = floats_of(nll);
  a.lse = floats_of(lse);
  a.total = floats_of(total);
  Engine(where).run(a);
}

template <class Engine>
void categorical_backward(const py::object& where, const py::tuple& sizes, const py::object& logits, const py::object& target,
                          const py::object& lse, const py::object& total, const py::object& grad_nll,
                          const py::object& grad_logits) {
  auto a = categorical_of<CategoricalBackward>(Shape(sizes), logits, target);
  a.lse = floats_of(lse);
  a.total = floats_of(total);
  a.grad_nll = view3_of(grad_nll);
  a.grad_logits = view3_of(grad_logits);
  Engine(where).run(a);
}

// Sizes are (batch, channels, components, pixels).
template <class Args>
Args mixture_of(const Shape& shape, const py::object& parameters, const py::object& target, const py::object& mask) {
  Args a;
  a.batch = shape.sizes.at(0), a.channels = shape.sizes.at(1), a.components = shape.sizes.at(2), a.pixels = shape.sizes.at(3);
  a.parameters = view3_of(parameters);
  a.target = view3_of(target);
  a.mask = view3_of(mask);  // (batch, pixels)
  a.mask.stride[2] = a.mask.stride[1];
  a.mask.stride[1] = 0;
  return a;
}

inline Shape pixels_of(const py::tuple& sizes) { return Shape(py::make_tuple(sizes[0], sizes[3])); }

template <class Engine>
void mixture_forward(const py::object& where, const py::tuple& sizes, const py::object& parameters, const py::object& target,
                     const py::object& mask, const py::object& nll, const py::object& grad_parameters) {
  auto a = mixture_of<MixtureForward>(Shape(sizes), parameters, target, mask);
  a.nll = loss_of<Loss>(nll, pixels_of(sizes));
  a.grad_parameters = view3_of(grad_parameters);
  Engine(where).run(a);
}

template <class Engine>
void mixture_backward(const py::object& where, const py::tuple& sizes, const py::object& parameters, const py::object& target,
                      const py::object& mask, const py::object& grad_nll, const py::object& grad_parameters) {
  auto a = mixture_of<MixtureBackward>(Shape(sizes), parameters, target, mask);
  a.grad_nll = loss_of<Upstream>(grad_nll, pixels_of(sizes));
  a.grad_parameters = view3_of(grad_parameters);
  Engine(where).run(a);
}

// (rows, dims) as the one sample of a View3.
inline View3 matrix_of(const py::object& tensor) {
  View3 v = view3_of(tensor);
  v.stride[2] = v.stride[1];
  v.stride[1] = v.stride[0];
  v.stride[0] = 0;
  return v;
}

// Sizes are (rows, columns, dims). own: the own column of row 0, None where rows have none; stratified: the log-weights of
// other columns, of the own one and of the next.
template <class Args>
Args pairwise_of(const Shape& shape, const py::object& z, const py::object& mu, const py::object& logvar, const py::object& log_weights,
                 const py::object& own, const py::object& stratified) {
  Args a;
  a.rows = shape.sizes.at(0), a.columns = shape.sizes.at(1), a.dims = shape.sizes.at(2);
  a.z = matrix_of(z);
  a.mu = matrix_of(mu);
  a.logvar = matrix_of(logvar);
  if (!log_weights.is_none()) a.log_weights = floats_of(log_weights);
  if (!own.is_none()) a.first = own.cast<std::int64_t>();
  if (!stratified.is_none()) {
    const py::tuple weights = stratified.cast<py::tuple>();
    a.is_stratified = true;
    a.log_other = weights[0].cast<float>(), a.log_own = weights[1].cast<float>(), a.log_next = weights[2].cast<float>();
  }
  return a;
}

template <class Engine>
void pairwise_forward(const py::object& where, const py::tuple& sizes, const py::object& z, const py::object& mu, const py::object& logvar,
                      const py::object& log_weights, const py::object& own, const py::object& stratified, const py::object& joint,
                      const py::object& dims) {
  auto a = pairwise_of<PairwiseForward>(Shape(sizes), z, mu, logvar, log_weights, own, stratified);
  a.joint = floats_of(joint);
  a.dims_out = matrix_of(dims);
  Engine(where).run(a);
}

template <class Engine>
void pairwise_backward(const py::object& where, const py::tuple& sizes, const py::object& grad_joint, const py::object& grad_dims,
                       const py::object& z, const py::object& mu, const py::object& logvar, const py::object& log_weights,
                       const py::object& own, const py::object& stratified, const py::object& joint, const py::object& dims,
                       const py::object& grad_z, const py::object& grad_mu, const py::object& grad_logvar, const py::object& grad_log_weights) {
  auto a = pairwise_of<PairwiseBackward>(Shape(sizes), z, mu, logvar, log_weights, own, stratified);
  a.joint = floats_of(joint);
  if (!grad_joint.is_none()) {
    a.grad_joint = floats_of(grad_joint);
    a.grad_joint_stride = view3_of(grad_joint).stride[0];
  }
  a.dims_out = matrix_of(dims);
  a.grad_dims = matrix_of(grad_dims);
  a.grad_z = matrix_of(grad_z);
  a.grad_mu = matrix_of(grad_mu);
  a.grad_logvar = matrix_of(grad_logvar);
  if (!grad_log_weights.is_none()) a.grad_log_weights = floats_of(grad_log_weights);
  a.has_weight_grad = a.grad_log_weights != nullptr;
  Engine(where).run(a);
}

// Defines every kernel in a module, and the tables that Python looks its numbers up in, by name. An Engine is made from
// what Python says about where to run, the first argument of each, and has run(arguments).
template <class Engine> void define(py::module_& m) {
  py::list kernels;
#define VAE_FAST_KERNEL(name, Args) m.def(#name, &name<Engine>), kernels.append(#name);
#include "../api/ops.def"
  m.attr("kernels") = kernels;

  py::dict likelihoods;
  py::set of_counts;
#define VAE_FAST_LIKELIHOOD(name, Struct, counts)  \
  likelihoods[#name] = likelihoods.size();         \
  if (counts) of_counts.add(#name);
#include "../api/likelihoods.def"
  m.attr("likelihoods") = likelihoods;
  m.attr("of_counts") = of_counts;

  py::dict parametrizations;
#define VAE_FAST_PARAMETRIZATION(name) parametrizations[#name] = static_cast<int>(Parametrization::name);
  VAE_FAST_PARAMETRIZATIONS(VAE_FAST_PARAMETRIZATION)
#undef VAE_FAST_PARAMETRIZATION
  m.attr("parametrizations") = parametrizations;

  py::dict dtypes;
#define VAE_FAST_DTYPE(dtype, name, bytes) dtypes[name] = static_cast<int>(DType::dtype);
  VAE_FAST_DTYPES(VAE_FAST_DTYPE)
#undef VAE_FAST_DTYPE
  m.attr("dtypes") = dtypes;
}

}  // namespace vae_fast
