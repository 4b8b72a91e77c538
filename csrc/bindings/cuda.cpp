// pybind11 module of the CUDA engine; does not link libtorch. A tensor arrives as (address, dtype code, strides), None if absent.
#include "../cuda/engine.h"
#include "parse.h"

using namespace vae_fast;

namespace {

// Where to run: (device index, stream handle, allocate). allocate(partials, tickets) -> (address, address) gives the
// memory of a Scratch; most launches need none.
struct Engine {
  Stream stream;
  py::object allocate;
  explicit Engine(const py::object& where) {
    const py::tuple parts = where.cast<py::tuple>();
    stream = {parts[0].cast<int>(), parts[1].cast<std::uintptr_t>()};
    allocate = parts[2];
  }
  template <class Args> void run(const Args& args) const {
    const Allocate scratch = allocator();
    py::gil_scoped_release release;
    vae_fast::run(args, stream, scratch);
  }

 private:
  Allocate allocator() const {
    return [this](std::int64_t partials, std::int64_t tickets) {
      py::gil_scoped_acquire acquire;
      const py::tuple addresses = allocate(partials, tickets).cast<py::tuple>();
      return Scratch{reinterpret_cast<double*>(addresses[0].cast<std::uintptr_t>()),
                     reinterpret_cast<std::uint32_t*>(addresses[1].cast<std::uintptr_t>())};
    };
  }
};

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "vae_fast's CUDA kernels. Tensors are (address, dtype code, strides) or None.";
  define<Engine>(m);
  m.attr("architectures") = VAE_FAST_CUDA_ARCHITECTURES;
  m.attr("toolkit") = VAE_FAST_CUDA_TOOLKIT;
}
