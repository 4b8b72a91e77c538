// The GPU's approximations, one instruction each of the multifunction unit, for csrc/cuda alone: a CPU kernel has no use
// for them, and their bits differ between architectures.
//
// The errors are the largest that the PTX manual allows. Elsewhere than on a GPU, which is in the tests' emulation, a
// result is off by just that much, up for some arguments and down for the others, so that the tests prove the contracts
// with the manual's bounds and not with one chip's luck. Numbers below 2^-126 count as 0, going in and coming out (.ftz).
#pragma once

#include "elementary.h"

VAE_FAST_NAMESPACE_BEGIN

#if !defined(__CUDA_ARCH__)
VAE_FAST_FN float flushed(float x) { return x > -0x1p-126f && x < 0x1p-126f ? x * 0.0f : x; }
// Up or down: any function of the argument's bits that has no pattern.
VAE_FAST_FN double worst(float x, double error) { return bit_cast<std::uint32_t>(x) * 0x9E3779B1u >> 31 ? error : -error; }
VAE_FAST_FN float off_by(float x, double exact, double relative, double absolute = 0) {
  if (!__builtin_isfinite(exact)) return static_cast<float>(exact);
  return flushed(static_cast<float>(exact + worst(x, absolute > 0 ? absolute : relative * exact)));
}
#endif

// log2(x): off by 2^-22, absolute for 1/2 < x < 2, elsewhere relative. -inf of 0.
VAE_FAST_FN float approximate_log2(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  const bool near = x > 0.5f && x < 2.0f;
  return off_by(x, __builtin_log2(static_cast<double>(flushed(x))), 0x1p-22, near ? 0x1p-22 : 0);
#endif
}

// 2^x: off by 2^-22, relative.
VAE_FAST_FN float approximate_exp2(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return off_by(x, __builtin_exp2(static_cast<double>(flushed(x))), 0x1p-22);
#endif
}

// 1/x: off by 1 ulp.
VAE_FAST_FN float approximate_reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return off_by(x, 1.0 / static_cast<double>(flushed(x)), 0x1p-23);
#endif
}

// √x: off by 2^-23, relative.
VAE_FAST_FN float approximate_sqrt(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return off_by(x, __builtin_sqrt(static_cast<double>(flushed(x))), 0x1p-23);
#endif
}

// 1/√x: off by 2^-22.9, relative.
VAE_FAST_FN float approximate_rsqrt(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return off_by(x, 1.0 / __builtin_sqrt(static_cast<double>(flushed(x))), 0x1.126p-23);
#endif
}

VAE_FAST_NAMESPACE_END
