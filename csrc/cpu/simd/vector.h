// The SIMD vector of the instruction set this file is compiled for, in GCC and Clang vector extensions; intrinsics only
// where the extensions have no word (fma, sqrt, the 32x32 -> 64 bit multiply, half precision).
#pragma once

#include "../../math/portable.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

VAE_FAST_NAMESPACE_BEGIN

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float vf32 __attribute__((vector_size(4 * kLanes)));
typedef std::int32_t vi32 __attribute__((vector_size(4 * kLanes)));
typedef std::uint32_t vu32 __attribute__((vector_size(4 * kLanes)));
typedef std::uint64_t vu64 __attribute__((vector_size(4 * kLanes)));

template <> struct Lanes<vf32> {
  using u32 = vu32;
  using i32 = vi32;

  static VAE_FAST_FN vf32 splat(float x) { return x - vf32{}; }
  static VAE_FAST_FN vf32 to_float(vi32 i) { return __builtin_convertvector(i, vf32); }
  // A bit for every lane where the mask holds: its sign bit.
  static VAE_FAST_FN unsigned bits(vi32 mask) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
    return _mm256_movemask_ps((__m256)mask);
#elif defined(__SSE2__)
    return _mm_movemask_ps((__m128)mask);
#else
    return (mask[0] < 0 ? 1 : 0) | (mask[1] < 0 ? 2 : 0) | (mask[2] < 0 ? 4 : 0) | (mask[3] < 0 ? 8 : 0);
#endif
  }
  static VAE_FAST_FN bool any(vi32 mask) { return bits(mask) != 0; }
  static VAE_FAST_FN bool any_negative(vi32 x) { return bits(x) != 0; }

  static VAE_FAST_FN vf32 fma(vf32 a, vf32 b, vf32 c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(__ARM_FEATURE_FMA)
    return vfmaq_f32(c, a, b);
#else
    return a * b + c;
#endif
  }

  // x86's own semantics: the second operand where either is NaN.
  static VAE_FAST_FN vf32 maximum(vf32 bound, vf32 x) {
#if defined(__AVX512F__)
    return _mm512_max_ps(bound, x);
#elif defined(__AVX2__)
    return _mm256_max_ps(bound, x);
#else
    return bound > x ? bound : x;
#endif
  }
  static VAE_FAST_FN vf32 minimum(vf32 bound, vf32 x) {
#if defined(__AVX512F__)
    return _mm512_min_ps(bound, x);
#elif defined(__AVX2__)
    return _mm256_min_ps(bound, x);
#else
    return bound < x ? bound : x;
#endif
  }

  static VAE_FAST_FN vf32 sqrt(vf32 x) {
#if defined(__AVX512F__)
    return _mm512_sqrt_ps(x);
#elif defined(__AVX2__)
    return _mm256_sqrt_ps(x);
#elif defined(__SSE2__)
    return _mm_sqrt_ps(x);
#elif defined(__ARM_NEON)
    return vsqrtq_f32(x);
#else
    vf32 r;
    for (int i = 0; i < kLanes; ++i) r[i] = __builtin_sqrtf(x[i]);
    return r;
#endif
  }
};

// The low 32 bits of every 64-bit lane, multiplied to 64 bits; what the upper halves hold does not matter.
VAE_FAST_FN vu64 multiply_low_halves(vu64 a, vu64 b) {
#if defined(__AVX512F__)
  return (vu64)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (vu64)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (vu64)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu);
#endif
}

// (even.low, odd.low) of each 64-bit lane, as one 64-bit lane.
VAE_FAST_FN vu64 pair_low_halves(vu64 even, vu64 odd) {
#if defined(__AVX512F__)
  return (vu64)_mm512_mask_shuffle_epi32((__m512i)even, 0xAAAA, (__m512i)odd, _MM_PERM_CCAA);
#elif defined(__AVX2__)
  return (vu64)_mm256_blend_epi32((__m256i)even, _mm256_shuffle_epi32((__m256i)odd, 0xA0), 0xAA);
#else
  return (even & 0xFFFFFFFFu) | (odd << 32);
#endif
}

// Interleaving float32 lanes within every 128 bits, as x86 does it: low gives a0 b0 a1 b1, high a2 b2 a3 b3.
VAE_FAST_FN vf32 interleave_low(vf32 a, vf32 b) {
#if defined(__AVX512F__)
  return _mm512_unpacklo_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_unpacklo_ps(a, b);
#else
  return vf32{a[0], b[0], a[1], b[1]};
#endif
}
VAE_FAST_FN vf32 interleave_high(vf32 a, vf32 b) {
#if defined(__AVX512F__)
  return _mm512_unpackhi_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_unpackhi_ps(a, b);
#else
  return vf32{a[2], b[2], a[3], b[3]};
#endif
}
// The first half of the 64-bit lanes to the even ones, the second half to the odd: the two interleaves above then
// give the first and the second half in order.
VAE_FAST_FN vu64 halves_to_even_odd(vu64 v) {
#if defined(__AVX512F__)
  return (vu64)_mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), (__m512i)v);
#elif defined(__AVX2__)
  return (vu64)_mm256_permute4x64_epi64((__m256i)v, 0xD8);
#else
  return v;
#endif
}

template <class V, class T> VAE_FAST_FN V load(const T* p) {
  V v;
  memcpy(&v, p, sizeof(V));
  return v;
}
template <class V, class T> VAE_FAST_FN void store(T* p, V v) { memcpy(p, &v, sizeof(V)); }

// The first `count` lanes of a vector, 0 in the others; count is kLanes except in the last vector of a run.
VAE_FAST_FN vi32 first_lanes(int count) {
  vi32 lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return lane < count;
}
VAE_FAST_FN vf32 load_partial(const float* p, int count) {
  if (__builtin_expect(count == kLanes, 1)) return load<vf32>(p);
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps((__mmask16)((1u << count) - 1u), p);
#elif defined(__AVX2__)
  return _mm256_maskload_ps(p, (__m256i)first_lanes(count));
#else
  vf32 v{};
  memcpy(&v, p, count * sizeof(float));
  return v;
#endif
}
VAE_FAST_FN void store_partial(float* p, vf32 v, int count) {
  if (__builtin_expect(count == kLanes, 1)) return store(p, v);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << count) - 1u), v);
#elif defined(__AVX2__)
  _mm256_maskstore_ps(p, (__m256i)first_lanes(count), v);
#else
  memcpy(p, &v, count * sizeof(float));
#endif
}

// body(i, count) over [0, n) in whole vectors; count < kLanes only for the last, whose loads and stores go through
// load_partial and store_partial.
template <class Body> VAE_FAST_FN void for_each_vector(std::int64_t n, Body body) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, kLanes);
  if (i < n) body(i, static_cast<int>(n - i));
}

// The sum of term(i, count), a vector, over [0, n). Sums have 16 lanes on every instruction set, folded in one fixed
// order, so their bits do not depend on it.
template <class Term> VAE_FAST_FN float sum_terms(std::int64_t n, Term term) {
  typedef float quarter __attribute__((vector_size(16)));
  constexpr int width = 16, vectors = width / kLanes;
  vf32 lanes[vectors] = {};
  std::int64_t i = 0;
  for (; i + width <= n; i += width)
    for (int v = 0; v < vectors; ++v) lanes[v] += term(i + v * kLanes, kLanes);
  for (int v = 0; v < vectors && i < n; ++v, i += kLanes) {
    const int count = n - i < kLanes ? static_cast<int>(n - i) : kLanes;
    lanes[v] += select(first_lanes(count), term(i, count), vf32{});
  }
  quarter q[4];
  memcpy(q, lanes, sizeof(q));
  const quarter four = (q[0] + q[2]) + (q[1] + q[3]);
  return (four[0] + four[2]) + (four[1] + four[3]);
}
VAE_FAST_FN float sum(const float* p, std::int64_t n) {
  return sum_terms(n, [&](std::int64_t i, int count) VAE_FAST_LAMBDA { return load_partial(p + i, count); });
}

VAE_FAST_NAMESPACE_END
