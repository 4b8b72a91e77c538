// What a launch needs on the host: the tensors' device made current, the caller's stream, errors as exceptions.
//
// Nothing here waits for the device or allocates on it, so every launch can be captured in a CUDA graph.
#pragma once

#if defined(VAE_FAST_CUDA_EMULATION)
#include "cuda_emulation.h"  // the tests run these sources on the CPU
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define VAE_FAST_SHARED(type, name) __shared__ vae_fast::Same<type> name
#endif

#include <stdexcept>
#include <string>

#include "engine.h"

#if !defined(VAE_FAST_CUDA_ARCHITECTURES)
#define VAE_FAST_CUDA_ARCHITECTURES "unknown architectures"
#endif

#define VAE_FAST_DEVICE __device__ __forceinline__

namespace vae_fast {

template <class T> using Same = T;  // so that an array type comes before its variable's name

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // leaves no error behind for the next caller
  std::string message = std::string("CUDA: ") + what + ": " + cudaGetErrorString(status);
  if (status == cudaErrorNoKernelImageForDevice)
    message += " (vae_fast was built for " VAE_FAST_CUDA_ARCHITECTURES "; rebuild it with TORCH_CUDA_ARCH_LIST set)";
  throw std::runtime_error(message);
}

// Makes the tensors' device current, and the caller's again at the end. This runtime is linked statically and torch has
// its own, but both call current what the driver has as the thread's current context (CUDA Runtime API, "Interactions
// with the CUDA Driver API"). Checked by test_second_device in tests/test_gpu.py, where there are two.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : device_(device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != device_) check(cudaSetDevice(device_), "cudaSetDevice");
  }
  ~DeviceGuard() {
    if (before_ != device_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_, before_ = 0;
};

template <class... Args>
void launch(const char* name, void (*kernel)(Args...), const Stream& stream, std::int64_t blocks, int threads, Args... args) {
  if (blocks > 0x7FFFFFFF) throw std::invalid_argument(std::string(name) + ": the tensor is too large for one launch");
  const DeviceGuard guard(stream.device);
  void* addresses[] = {&args...};
  check(cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(threads), addresses, 0,
                         reinterpret_cast<cudaStream_t>(stream.handle)), name);
}

}  // namespace vae_fast
