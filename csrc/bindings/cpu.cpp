// pybind11 module of the CPU engine; does not link libtorch. A tensor arrives as (address, dtype code, strides), None if absent.
#include "../math/philox.h"
#include "../cpu/engine.h"
#include "../cpu/pool.h"
#include "parse.h"
#include "dlpack.h"

using namespace vae_fast;

namespace {

// Where to run: a number of threads.
struct Engine {
  int threads;
  explicit Engine(const py::object& where) : threads(where.cast<int>()) {}
  template <class Args> void run(const Args& args) const {
    py::gil_scoped_release release;
    vae_fast::run(args, threads);
  }
};

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
  define<Engine>(m);
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
