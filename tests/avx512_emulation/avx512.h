// AVX-512 for machines that have none: included before everything else (-include), it lets the CPU kernels take their
// 16-lane paths while the compiler splits each vector in two. Only what csrc/cpu uses, from Intel's descriptions of the
// instructions; an intrinsic that is missing here fails to compile.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define __AVX512F__ 1

namespace emulated {

typedef float f32x16 __attribute__((vector_size(64)));
typedef std::uint32_t u32x16 __attribute__((vector_size(64)));
typedef std::uint64_t u64x8 __attribute__((vector_size(64)));
typedef std::uint16_t mask16;

template <class F> inline f32x16 each(F lane) {
  f32x16 r;
  for (int i = 0; i < 16; ++i) r[i] = lane(i);
  return r;
}

inline f32x16 fmadd(f32x16 a, f32x16 b, f32x16 c) { return each([&](int i) { return std::fma(a[i], b[i], c[i]); }); }
inline f32x16 sqrt(f32x16 a) { return each([&](int i) { return std::sqrt(a[i]); }); }
inline f32x16 max(f32x16 a, f32x16 b) { return each([&](int i) { return a[i] > b[i] ? a[i] : b[i]; }); }
inline f32x16 min(f32x16 a, f32x16 b) { return each([&](int i) { return a[i] < b[i] ? a[i] : b[i]; }); }

inline mask16 movepi32_mask(u64x8 v) {
  const u32x16 lanes = (u32x16)v;
  mask16 mask = 0;
  for (int i = 0; i < 16; ++i) mask |= static_cast<mask16>((lanes[i] >> 31) << i);
  return mask;
}

inline u64x8 mul_epu32(u64x8 a, u64x8 b) { return (a & 0xFFFFFFFFu) * (b & 0xFFFFFFFFu); }

// Within every 128 bits: a0 b0 a1 b1, and a2 b2 a3 b3.
inline f32x16 unpack(f32x16 a, f32x16 b, int from) {
  return each([&](int i) { return (i % 2 ? b : a)[i / 4 * 4 + from + i % 4 / 2]; });
}

// Lanes where the mask is 0 come from `source`; the others from `a`, chosen within 128 bits by two bits of `control`.
inline u64x8 mask_shuffle_epi32(u64x8 source, mask16 mask, u64x8 a, int control) {
  const u32x16 s = (u32x16)source, v = (u32x16)a;
  u32x16 r;
  for (int i = 0; i < 16; ++i) r[i] = mask >> i & 1 ? v[i / 4 * 4 + (control >> (2 * (i % 4)) & 3)] : s[i];
  return (u64x8)r;
}
inline u64x8 permutexvar_epi64(u64x8 index, u64x8 a) {
  u64x8 r;
  for (int i = 0; i < 8; ++i) r[i] = a[index[i] % 8];
  return r;
}
inline u64x8 setr_epi64(int a, int b, int c, int d, int e, int f, int g, int h) {
  return u64x8{(std::uint64_t)a, (std::uint64_t)b, (std::uint64_t)c, (std::uint64_t)d,
               (std::uint64_t)e, (std::uint64_t)f, (std::uint64_t)g, (std::uint64_t)h};
}

inline f32x16 maskz_loadu(mask16 mask, const float* p) {
  return each([&](int i) { return mask >> i & 1 ? p[i] : 0.0f; });
}
inline void mask_storeu(float* p, mask16 mask, f32x16 v) {
  for (int i = 0; i < 16; ++i)
    if (mask >> i & 1) p[i] = v[i];
}

inline f32x16 cvtph(__m256i h) {
  const __m256 low = _mm256_cvtph_ps(_mm256_castsi256_si128(h)), high = _mm256_cvtph_ps(_mm256_extracti128_si256(h, 1));
  f32x16 r;
  std::memcpy(&r, &low, 32);
  std::memcpy(reinterpret_cast<char*>(&r) + 32, &high, 32);
  return r;
}
inline __m256i cvtps(f32x16 v) {
  __m256 low, high;
  std::memcpy(&low, &v, 32);
  std::memcpy(&high, reinterpret_cast<char*>(&v) + 32, 32);
  return _mm256_set_m128i(_mm256_cvtps_ph(high, 0), _mm256_cvtps_ph(low, 0));
}

}  // namespace emulated

#define __m512i emulated::u64x8
#define __mmask16 emulated::mask16
#define _mm512_fmadd_ps emulated::fmadd
#define _mm512_sqrt_ps emulated::sqrt
#define _mm512_max_ps emulated::max
#define _mm512_min_ps emulated::min
#define _mm512_movepi32_mask emulated::movepi32_mask
#define _mm512_mul_epu32 emulated::mul_epu32
#define _mm512_unpacklo_ps(a, b) emulated::unpack(a, b, 0)
#define _mm512_unpackhi_ps(a, b) emulated::unpack(a, b, 2)
#define _mm512_mask_shuffle_epi32 emulated::mask_shuffle_epi32
#define _mm512_permutexvar_epi64 emulated::permutexvar_epi64
#define _mm512_setr_epi64 emulated::setr_epi64
#define _mm512_maskz_loadu_ps emulated::maskz_loadu
#define _mm512_mask_storeu_ps emulated::mask_storeu
#define _mm512_cvtph_ps emulated::cvtph
#define _mm512_cvtps_ph(v, rounding) emulated::cvtps(v)
