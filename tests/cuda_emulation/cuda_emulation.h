// Runs the CUDA sources of csrc/cuda on the CPU, so that their indices, barriers and shuffles can be tested under
// AddressSanitizer and UndefinedBehaviorSanitizer without a GPU. Included by csrc/cuda/launch.h in place of CUDA's own
// headers; defines the few names of CUDA that the kernels use, and nothing else.
//
// A launch runs a few of its blocks side by side, chosen at random. Their threads are fibres: one runs until it comes to
// a barrier or a shuffle, then another that can, chosen at random. So a kernel that reads what another thread has yet to
// write gets rubbish for some seed: shared memory is filled with NaN bits before a block starts. Barriers
// that not all threads come to, shuffles that not all named lanes come to, and shuffles from a lane that does not take
// part end the process with a message; so does, through ASan, any access out of bounds of tensors or shared memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define VAE_FAST_SHARED(type, name) \
  using Shared_##name = type;       \
  Shared_##name& name = emulation::shared<Shared_##name>([] {})

struct uint3 { unsigned x = 0, y = 0, z = 0; };
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) uint2 { std::uint32_t x, y; };
struct alignas(16) uint4 { std::uint32_t x, y, z, w; };
inline uint2 make_uint2(std::uint32_t x, std::uint32_t y) { return {x, y}; }
inline uint4 make_uint4(std::uint32_t x, std::uint32_t y, std::uint32_t z, std::uint32_t w) { return {x, y, z, w}; }

extern uint3 threadIdx, blockIdx;  // of the fibre that runs

// ---- half precision ----

struct __half { std::uint16_t bits; };
struct __half2 { std::uint16_t x, y; };
struct __nv_bfloat162 { std::uint16_t x, y; };

namespace emulation {
inline std::uint16_t half_bits(float f) {
  const _Float16 h = static_cast<_Float16>(f);
  std::uint16_t bits;
  std::memcpy(&bits, &h, 2);
  return bits;
}
inline std::uint16_t bfloat16_bits(float f) {
  std::uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return static_cast<std::uint16_t>(f != f ? 0x7FFFu : (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}
}  // namespace emulation

inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline float __half2float(__half h) {
  _Float16 f;
  std::memcpy(&f, &h, 2);
  return static_cast<float>(f);
}
inline __half2 __floats2half2_rn(float x, float y) { return {emulation::half_bits(x), emulation::half_bits(y)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {emulation::bfloat16_bits(x), emulation::bfloat16_bits(y)};
}

// ---- what threads share ----

namespace emulation {
void barrier();
// This lane's value to the others that `mask` names; back comes that of `lane`.
std::uint64_t exchange(std::uint32_t mask, std::uint64_t value, unsigned lane);
void* shared_memory(const void* site, std::size_t bytes);

// Every place in the sources that declares shared memory has one piece of it a block, as on the GPU.
template <class T, class Site> T& shared(Site) {
  static const char site = 0;
  return *static_cast<T*>(shared_memory(&site, sizeof(T)));
}
}  // namespace emulation

inline void __syncthreads() { emulation::barrier(); }
inline void __threadfence() {}
template <class T> T __shfl_xor_sync(std::uint32_t mask, T value, int lanes) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = emulation::exchange(mask, bits, threadIdx.x % 32 ^ static_cast<unsigned>(lanes));
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
template <class T> T __ldcg(const T* p) { return *p; }
inline unsigned atomicInc(unsigned* p, unsigned limit) {
  const unsigned before = *p;
  *p = before >= limit ? 0 : before + 1;
  return before;
}

// ---- the runtime ----

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorInvalidDevice = 101, cudaErrorNoKernelImageForDevice = 209 };
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);

namespace emulation {
using Thread = void (*)(void* context);
cudaError_t launch(dim3 grid, dim3 block, cudaStream_t stream, Thread thread, void* context);

template <class... Args, std::size_t... i>
void call(void (*kernel)(Args...), void** args, std::index_sequence<i...>) {
  kernel(*static_cast<Args*>(args[i])...);
}
}  // namespace emulation

template <class... Args>
cudaError_t cudaLaunchKernel(void (*kernel)(Args...), dim3 grid, dim3 block, void** args, std::size_t, cudaStream_t stream) {
  struct Context { void (*kernel)(Args...); void** args; } context{kernel, args};
  return emulation::launch(grid, block, stream, [](void* c) {
    emulation::call(static_cast<Context*>(c)->kernel, static_cast<Context*>(c)->args, std::index_sequence_for<Args...>{});
  }, &context);
}
