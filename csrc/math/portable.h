// What the host and the device compilers spell differently, and nothing else.
//
// The math of this folder is written once, as templates over F: `float` in a CUDA thread or a scalar loop, a SIMD
// vector of floats (csrc/cpu/simd/vector.h) in a CPU kernel. F supports + - * / and comparison; whatever an operator cannot
// say is a member of Lanes<F>.
//
// `Error of NAME: ARGUMENT in [LOW, HIGH]; BOUND ulp` is a function's largest error in units in the last place of the true
// float32; `words` are any 32 bits. tests/test_math.py reads these lines and holds the functions to them, on the CPU's
// instruction sets with FMA (one result) and without. What has no such line is exact or made of what has one.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define VAE_FAST_FN __host__ __device__ __forceinline__
#else
#define VAE_FAST_FN inline __attribute__((always_inline))
#endif

// What hardly any element needs: out of the way of the rest.
#if defined(__CUDACC__)
#define VAE_FAST_COLD __host__ __device__
#else
#define VAE_FAST_COLD __attribute__((noinline, cold))
#endif

#define VAE_FAST_LAMBDA __attribute__((always_inline))

// Every instruction set compiles this code in a namespace of its own (VAE_FAST_ISA), so that the linker can never
// pick an AVX-512 copy of an inline function for a machine that has none.
#if defined(VAE_FAST_ISA)
#define VAE_FAST_NAMESPACE_BEGIN namespace vae_fast { namespace VAE_FAST_ISA {
#define VAE_FAST_NAMESPACE_END }}
#else
#define VAE_FAST_NAMESPACE_BEGIN namespace vae_fast {
#define VAE_FAST_NAMESPACE_END }
#endif

VAE_FAST_NAMESPACE_BEGIN

// What F needs beyond operators. SIMD vectors specialise this in csrc/cpu/simd/vector.h.
template <class F> struct Lanes;

template <> struct Lanes<float> {
  using u32 = std::uint32_t;
  using i32 = std::int32_t;

  static VAE_FAST_FN float splat(float x) { return x; }
  static VAE_FAST_FN float to_float(i32 i) { return static_cast<float>(i); }
  static VAE_FAST_FN bool any(bool mask) { return mask; }
  static VAE_FAST_FN bool any_negative(i32 bits) { return bits < 0; }

  static VAE_FAST_FN float fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
    return __fmaf_rn(a, b, c);
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
  }

  static VAE_FAST_FN float maximum(float bound, float x) { return bound > x ? bound : x; }
  static VAE_FAST_FN float minimum(float bound, float x) { return bound < x ? bound : x; }

  static VAE_FAST_FN float sqrt(float x) {
#if defined(__CUDA_ARCH__)
    // What __fsqrt_rn does for a normal number, without its branch for the others: the same, correctly rounded bits.
    float root;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
    const float s = __fmul_rn(x, root), half = __fmul_rn(root, 0.5f);
    return __fmaf_rn(__fmaf_rn(-s, s, x), half, s);
#else
    return __builtin_sqrtf(x);
#endif
  }
};

// The integer types with the lanes of F.
template <class F> using u32_of = typename Lanes<F>::u32;
template <class F> using i32_of = typename Lanes<F>::i32;

template <class F> VAE_FAST_FN F splat(float x) { return Lanes<F>::splat(x); }
// Error of to_float: i in words; 0.5 ulp
template <class F> VAE_FAST_FN F to_float(i32_of<F> i) { return Lanes<F>::to_float(i); }

// a·b + c. Fused wherever the hardware can; the compiler never fuses on its own (-ffp-contract=off).
// Error of fma: a, c in [-1e15, 1e15], b in [-1e15, 1e15]; 0.5 ulp of |ab| + |c|, 1 without FMA
template <class F> VAE_FAST_FN F fma(F a, F b, F c) { return Lanes<F>::fma(a, b, c); }
// Error of sqrt: x in [2^-126, 3.4028234e38]; 0.5 ulp
template <class F> VAE_FAST_FN F sqrt(F x) { return Lanes<F>::sqrt(x); }
// Error of divide: a in [-1e18, 1e18], b in [1e-18, 1e18]; 0.5 ulp
template <class F> VAE_FAST_FN F divide(F a, F b) {
#if defined(__CUDA_ARCH__)
  // The IEEE division for a divisor in the middle of the range, without its branch for the ends.
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(b));
  r = __fmaf_rn(__fmaf_rn(-b, r, 1.0f), r, r);
  const float q = __fmul_rn(a, r);
  return __fmaf_rn(__fmaf_rn(-b, q, a), r, q);
#else
  return a / b;
#endif
}
// The larger and the smaller of a bound and x, and NaN where x is NaN: the order of the arguments matters.
// Error of maximum: bound in [-3.4028234e38, 3.4028234e38], x in [-3.4028234e38, 3.4028234e38]; 0 ulp
template <class F> VAE_FAST_FN F maximum(F bound, F x) { return Lanes<F>::maximum(bound, x); }
// Error of minimum: bound in [-3.4028234e38, 3.4028234e38], x in [-3.4028234e38, 3.4028234e38]; 0 ulp
template <class F> VAE_FAST_FN F minimum(F bound, F x) { return Lanes<F>::minimum(bound, x); }

template <class To, class From> VAE_FAST_FN To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// mask ? a : b. A vector mask selects lane by lane, so neither side may have a side effect.
template <class M, class T> VAE_FAST_FN T select(M mask, T a, T b) { return mask ? a : b; }

// Whether a mask of F's lanes holds in any: to pass over what no lane needs, never to change a result.
template <class F, class M> VAE_FAST_FN bool any(M mask) { return Lanes<F>::any(mask); }
// Whether any lane has its sign bit set: a mask's own test without a comparison before it.
template <class F> VAE_FAST_FN bool any_negative(u32_of<F> bits) { return Lanes<F>::any_negative(bit_cast<i32_of<F>>(bits)); }

// c0 + c1·x + c2·x² + ..., two coefficients a step: as many operations as Horner's rule and half its latency. Its error is
// part of that of the function it is for.
template <class F> VAE_FAST_FN F polynomial(F, F, float c0) { return splat<F>(c0); }
template <class F> VAE_FAST_FN F polynomial(F x, F, float c0, float c1) { return fma(splat<F>(c1), x, splat<F>(c0)); }
template <class F, class... C> VAE_FAST_FN F polynomial(F x, F square, float c0, float c1, C... higher) {
  return fma(polynomial(x, square, higher...), square, fma(splat<F>(c1), x, splat<F>(c0)));
}

VAE_FAST_NAMESPACE_END
