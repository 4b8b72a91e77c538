// The kernels that every instruction set has, each declared in a namespace of its own.
#pragma once

#include "../api/arguments.h"

namespace vae_fast {

namespace baseline {
#define VAE_FAST_KERNEL(name, Args) void name(const Args&, const Task&);
#include "../api/ops.def"
void noise_words(const std::int64_t*, std::int64_t, std::int64_t, std::int64_t, std::uint32_t*);
}  // namespace baseline

#if defined(__x86_64__)
namespace avx2 {
#define VAE_FAST_KERNEL(name, Args) void name(const Args&, const Task&);
#include "../api/ops.def"
void noise_words(const std::int64_t*, std::int64_t, std::int64_t, std::int64_t, std::uint32_t*);
}  // namespace avx2

namespace avx512 {
#define VAE_FAST_KERNEL(name, Args) void name(const Args&, const Task&);
#include "../api/ops.def"
void noise_words(const std::int64_t*, std::int64_t, std::int64_t, std::int64_t, std::uint32_t*);
}  // namespace avx512
#endif

}  // namespace vae_fast
