// Python's door to the CPU engine. Nothing of torch: a tensor arrives as (address, dtype code, strides), None if absent.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "../common/philox.h"
#include "../cpu/engine.h"
#include "../cpu/pool.h"
#include "dlpack.h"

namespace py = pybind11;
using namespace vae_fast;

namespace {

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

View view(const py::object& tensor, const Shape& shape) {
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

RowSum row_sum(const py::object& tensor) {
  RowSum sum;
  if (tensor.is_none()) return sum;
  const py::tuple parts = tensor.cast<py::tuple>();
  sum.value = reinterpret_cast<float*>(parts[0].cast<std::uintptr_t>());
  sum.stride = parts[2].cast<py::tuple>()[0].cast<std::int64_t>();
  return sum;
}

// A summed gradient is dense float32 and has fewer dimensions than the shape: those of a sample, or none.
Gradient gradient(const py::object& tensor, const Shape& shape) {
  Gradient g;
  if (tensor.is_none()) return g;
  const py::tuple parts = tensor.cast<py::tuple>();
  const std::size_t dims = parts[2].cast<py::tuple>().size();
  if (dims == shape.sizes.size()) {
    g.view = view(tensor, shape);
  } else {
    g.view.data = reinterpret_cast<char*>(parts[0].cast<std::uintptr_t>());
    g.reduction = dims == 0 ? Reduction::all : Reduction::batch;
  }
  return g;
}

Noise noise(std::uintptr_t rng_state, bool per_sample, const py::object& given, const Shape& shape) {
  return {view(given, shape), reinterpret_cast<const std::int64_t*>(rng_state), per_sample, shape.rows};
}

Clamp clamp(const py::object& bounds) {
  if (bounds.is_none()) return {};
  const py::tuple pair = bounds.cast<py::tuple>();
  return {true, pair[0].cast<float>(), pair[1].cast<float>()};
}

template <class Args> void run_without_gil(const Args& args, const Shape& shape, int threads) {
  py::gil_scoped_release release;
  run(args, shape.rows, shape.columns, threads);
}

void latent_forward(int threads, const py::tuple& sizes, std::int64_t draws, const py::object& mu, const py::object& logvar,
                    const py::object& prior_mu, const py::object& prior_logvar, std::uintptr_t rng_state, bool state_per_sample,
                    const py::object& given, const py::object& bounds, const py::object& z, const py::object& kl) {
  const Shape shape(sizes);
  LatentForward a;
  a.mu = view(mu, shape);
  a.logvar = view(logvar, shape);
  a.prior_mu = view(prior_mu, shape);
  a.prior_logvar = view(prior_logvar, shape);
  a.noise = noise(rng_state, state_per_sample, given, shape);
  a.draws = draws;
  a.clamp = clamp(bounds);
  a.z = view(z, shape);
  a.kl = row_sum(kl);
  run_without_gil(a, shape, threads);
}

void latent_backward(int threads, const py::tuple& sizes, std::int64_t draws, const py::object& grad_z, const py::object& grad_kl,
                     const py::object& mu, const py::object& logvar, const py::object& prior_mu, const py::object& prior_logvar,
                     std::uintptr_t rng_state, bool state_per_sample, const py::object& given, const py::object& bounds,
                     const py::object& grad_mu, const py::object& grad_logvar, const py::object& grad_prior_mu,
                     const py::object& grad_prior_logvar) {
  const Shape shape(sizes);
  const RowSum from_kl = row_sum(grad_kl);
  LatentBackward a;
  a.grad_z = view(grad_z, shape);
  a.grad_kl = from_kl.value;
  a.grad_kl_stride = from_kl.stride;
  a.mu = view(mu, shape);
  a.logvar = view(logvar, shape);
  a.prior_mu = view(prior_mu, shape);
  a.prior_logvar = view(prior_logvar, shape);
  a.noise = noise(rng_state, state_per_sample, given, shape);
  a.draws = draws;
  a.clamp = clamp(bounds);
  a.grad_mu = view(grad_mu, shape);
  a.grad_logvar = view(grad_logvar, shape);
  a.grad_prior_mu = gradient(grad_prior_mu, shape);
  a.grad_prior_logvar = gradient(grad_prior_logvar, shape);
  run_without_gil(a, shape, threads);
}

void noise_fill(int threads, const py::tuple& sizes, std::int64_t draws, std::uintptr_t rng_state, bool state_per_sample,
                const py::object& eps) {
  const Shape shape(sizes);
  NoiseFill a;
  a.noise = noise(rng_state, state_per_sample, py::none(), shape);
  a.draws = draws;
  a.eps = view(eps, shape);
  run_without_gil(a, shape, threads);
}

void likelihood_forward(int threads, const py::tuple& sizes, int member, const py::tuple& parameters, const py::object& target,
                        const py::object& nll) {
  const Shape shape(sizes);
  LikelihoodForward a;
  a.member = member;
  for (std::size_t p = 0; p < parameters.size(); ++p) a.parameters[p] = view(parameters[p], shape);
  a.target = view(target, shape);
  a.nll = row_sum(nll);
  run_without_gil(a, shape, threads);
}

void likelihood_backward(int threads, const py::tuple& sizes, int member, const py::tuple& parameters, const py::object& target,
                         const py::object& grad_nll, const py::tuple& gradients) {
  const Shape shape(sizes);
  const RowSum from_nll = row_sum(grad_nll);
  LikelihoodBackward a;
  a.member = member;
  for (std::size_t p = 0; p < parameters.size(); ++p) {
    a.parameters[p] = view(parameters[p], shape);
    a.gradients[p] = gradient(gradients[p], shape);
  }
  a.target = view(target, shape);
  a.grad_nll = from_nll.value;
  a.grad_nll_stride = from_nll.stride;
  run_without_gil(a, shape, threads);
}

// Uninitialised, as a DLPack capsule; dense up to a permutation of its dimensions.
py::object empty_strided(std::vector<std::int64_t> shape, std::vector<std::int64_t> strides, int dtype) {
  View element;
  element.dtype = static_cast<DType>(dtype);
  std::int64_t bytes = element.item_size();
  for (const std::int64_t size : shape) bytes *= size;
  return to_dlpack(pool_allocate(bytes), element.dtype == DType::bfloat16, static_cast<int>(8 * element.item_size()),
                   std::move(shape), std::move(strides), &pool_free);
}

std::vector<std::uint32_t> noise_words(std::int64_t seed, std::int64_t offset, std::int64_t group, std::int64_t row,
                                       std::int64_t count) {
  std::vector<std::uint32_t> words(4 * count);
  const std::int64_t state[2] = {seed, offset};
  kernels().noise_words(state, group, row, count, words.data());
  return words;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "vae_fast's CPU kernels. Tensors are (address, dtype code, strides) or None.";
  m.def("latent_forward", &latent_forward);
  m.def("latent_backward", &latent_backward);
  m.def("noise_fill", &noise_fill);
  m.def("likelihood_forward", &likelihood_forward);
  m.def("likelihood_backward", &likelihood_backward);
  m.def("noise_words", &noise_words, py::arg("seed"), py::arg("offset"), py::arg("group"), py::arg("row"), py::arg("count"),
        "Philox words of `count` counters (group, row, offset) on, four each, by the vector kernels");
  m.def("empty_strided", &empty_strided, py::arg("shape"), py::arg("strides"), py::arg("dtype"));
  m.def("cached_bytes", &pool_cached);
  m.def("cache_limit", &pool_limit);
  m.def("empty_cache", &pool_trim);
  m.def("available_isas", &available_isas, "instruction sets usable here, best last");
  m.def("isa", [] { return std::string(kernels().isa); }, "the instruction set in use");
  m.def("use_isa", &use_isa, py::arg("name"));
  m.def("has_openmp", &has_openmp);
}
