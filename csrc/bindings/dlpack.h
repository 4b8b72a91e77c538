// A tensor over the engine's memory, handed to Python as a DLPack capsule. Every framework reads DLPack, so torch is not
// needed here. Layout: https://dmlc.github.io/dlpack/latest/c_api.html (version 0.8).
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <vector>

namespace vae_fast {

struct DLTensor {
  void* data;
  std::int32_t device_type, device_id;
  std::int32_t dims;
  std::uint8_t type_code, type_bits;
  std::uint16_t type_lanes;
  std::int64_t *shape, *strides;
  std::uint64_t byte_offset;
};
struct DLManagedTensor {
  DLTensor tensor;
  void* context;
  void (*deleter)(DLManagedTensor*);
};

// Calls `release(data)` when the last tensor over it is freed.
inline pybind11::object to_dlpack(void* data, bool bfloat, int bits, std::vector<std::int64_t> shape,
                                  std::vector<std::int64_t> strides, void (*release)(void*)) {
  struct Owner {
    DLManagedTensor managed;
    std::vector<std::int64_t> shape, strides;
    void (*release)(void*);
  };
  constexpr std::int32_t cpu = 1;
  constexpr std::uint8_t type_float = 2, type_bfloat = 4;
  auto* owner = new Owner{{}, std::move(shape), std::move(strides), release};
  owner->managed.tensor = {data, cpu, 0, static_cast<std::int32_t>(owner->shape.size()),
                           bfloat ? type_bfloat : type_float, static_cast<std::uint8_t>(bits), 1,
                           owner->shape.data(), owner->strides.data(), 0};
  owner->managed.context = owner;
  owner->managed.deleter = [](DLManagedTensor* self) {
    auto* mine = static_cast<Owner*>(self->context);
    mine->release(self->tensor.data);
    delete mine;
  };
  // A consumer renames a capsule when it takes the tensor: one with the original name was never consumed.
  PyObject* capsule = PyCapsule_New(&owner->managed, "dltensor", [](PyObject* self) {
    if (!PyCapsule_IsValid(self, "dltensor")) return;
    auto* managed = static_cast<DLManagedTensor*>(PyCapsule_GetPointer(self, "dltensor"));
    managed->deleter(managed);
  });
  return pybind11::reinterpret_steal<pybind11::object>(capsule);
}

}  // namespace vae_fast
