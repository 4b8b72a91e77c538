// float32 from and to every dtype a kernel reads or writes: one element, or a dense run.
#pragma once

#include "vector.h"

VAE_FAST_NAMESPACE_BEGIN

struct bfloat16 { std::uint16_t bits; };
struct float16 { std::uint16_t bits; };
struct boolean { std::uint8_t byte; };
struct count8 { std::uint8_t byte; };
typedef std::uint16_t vu16 __attribute__((vector_size(2 * kLanes)));
typedef std::uint8_t vu8 __attribute__((vector_size(kLanes)));
typedef std::int16_t vi16 __attribute__((vector_size(2 * kLanes)));

// Half precision by bits, for instruction sets without a conversion.
VAE_FAST_FN float half_to_float(std::uint16_t h) {
  const std::uint32_t sign = (h & 0x8000u) << 16, magnitude = h & 0x7FFFu;
  if (magnitude >= 0x7C00u) return bit_cast<float>(sign | 0x7F800000u | ((magnitude & 0x3FFu) << 13));
  // As if its exponent field were that of a float, then scaled: exact for subnormals too.
  return bit_cast<float>(sign | bit_cast<std::uint32_t>(bit_cast<float>(magnitude << 13) * 0x1p112f));
}
VAE_FAST_FN std::uint16_t float_to_half(float f) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(f), sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<std::uint16_t>(sign | 0x7E00u);  // NaN
  if (magnitude >= 0x47800000u) return static_cast<std::uint16_t>(sign | 0x7C00u);  // 2^16 and above
  std::uint32_t rounded;
  if (magnitude < 0x38800000u) {
    // Subnormal: adding 1/2 leaves the rounded multiple of 2^-24 in the low bits.
    rounded = bit_cast<std::uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3F000000u;
  } else {
    rounded = (magnitude + 0xFFFu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  }
  return static_cast<std::uint16_t>(sign | rounded);
}

VAE_FAST_FN float load_one(const float* p) { return *p; }
VAE_FAST_FN float load_one(const bfloat16* p) { return bit_cast<float>(std::uint32_t{p->bits} << 16); }
VAE_FAST_FN float load_one(const float16* p) { return half_to_float(p->bits); }
VAE_FAST_FN float load_one(const std::uint8_t* p) { return static_cast<float>(*p) / 255.0f; }
VAE_FAST_FN float load_one(const boolean* p) { return p->byte != 0 ? 1.0f : 0.0f; }
VAE_FAST_FN float load_one(const count8* p) { return static_cast<float>(p->byte); }
VAE_FAST_FN float load_one(const std::int16_t* p) { return static_cast<float>(*p); }
VAE_FAST_FN float load_one(const std::uint16_t* p) { return static_cast<float>(*p); }
VAE_FAST_FN float load_one(const std::int32_t* p) { return static_cast<float>(*p); }
VAE_FAST_FN float load_one(const std::int64_t* p) { return static_cast<float>(*p); }

VAE_FAST_FN vf32 load_vector(const float* p) { return load<vf32>(p); }
VAE_FAST_FN vf32 load_vector(const bfloat16* p) {
  return bit_cast<vf32>(__builtin_convertvector(load<vu16>(p), vu32) << 16);
}
VAE_FAST_FN vf32 load_vector(const float16* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(load<__m256i>(p));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(load<__m128i>(p));
#else
  vf32 v;
  for (int i = 0; i < kLanes; ++i) v[i] = load_one(p + i);
  return v;
#endif
}
VAE_FAST_FN vf32 load_vector(const std::uint8_t* p) {
  return to_float<vf32>(__builtin_convertvector(load<vu8>(p), vi32)) / splat<vf32>(255.0f);
}
VAE_FAST_FN vf32 load_vector(const boolean* p) {
  return select(__builtin_convertvector(load<vu8>(p), vi32) != 0, splat<vf32>(1.0f), splat<vf32>(0.0f));
}

VAE_FAST_FN vf32 load_vector(const count8* p) { return to_float<vf32>(__builtin_convertvector(load<vu8>(p), vi32)); }
VAE_FAST_FN vf32 load_vector(const std::int16_t* p) {
  return to_float<vf32>(__builtin_convertvector(load<vi16>(p), vi32));
}
VAE_FAST_FN vf32 load_vector(const std::uint16_t* p) {
  return to_float<vf32>(__builtin_convertvector(load<vu16>(p), vi32));
}
VAE_FAST_FN vf32 load_vector(const std::int32_t* p) { return to_float<vf32>(load<vi32>(p)); }
VAE_FAST_FN vf32 load_vector(const std::int64_t* p) {
  vf32 v;
  for (int i = 0; i < kLanes; ++i) v[i] = load_one(p + i);
  return v;
}

template <class T> VAE_FAST_FN void load_run(const T* p, std::int64_t n, float* out) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load_vector(p + i));
  for (; i < n; ++i) out[i] = load_one(p + i);
}

VAE_FAST_FN std::uint16_t round_to_bfloat16(float f) {
  const std::uint32_t bits = bit_cast<std::uint32_t>(f);
  if (f != f) return 0x7FC0u;
  return static_cast<std::uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

VAE_FAST_FN void store_one(float f, float* p) { *p = f; }
VAE_FAST_FN void store_one(float f, bfloat16* p) { p->bits = round_to_bfloat16(f); }
VAE_FAST_FN void store_one(float f, float16* p) { p->bits = float_to_half(f); }

VAE_FAST_FN void store_vector(vf32 f, float* p) { store(p, f); }
VAE_FAST_FN void store_vector(vf32 f, bfloat16* p) {
  const vu32 bits = bit_cast<vu32>(f), rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  store(p, __builtin_convertvector(select(f != f, vu32{} + 0x7FC0u, rounded), vu16));
}
VAE_FAST_FN void store_vector(vf32 f, float16* p) {
#if defined(__AVX512F__)
  store(p, _mm512_cvtps_ph(f, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  store(p, _mm256_cvtps_ph(f, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes; ++i) store_one(f[i], p + i);
#endif
}

template <class T> VAE_FAST_FN void store_run(const float* in, std::int64_t n, T* p) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store_vector(load<vf32>(in + i), p + i);
  for (; i < n; ++i) store_one(in[i], p + i);
}

VAE_FAST_NAMESPACE_END
