// exp, expm1, log1p and their kin in float32: branch-free polynomials, so that a lane never waits for another and every
// engine gets the same bits from the same instructions. Coefficients are minimax fits (Remez, 40 digits), the errors
// quoted are those of the polynomial alone.
#pragma once

#include "portable.h"

VAE_FAST_NAMESPACE_BEGIN

constexpr float kLog2e = 1.44269504088896341f;
constexpr float kLn2High = 0.693359375f;  // nine bits: k·kLn2High is exact for |k| < 2^15
constexpr float kLn2Low = -2.12194440e-4f;
constexpr float kLn2 = 0.693147180559945309f;
constexpr float kLog2Pi = 1.83787706640934548f;

// x clamped as torch.clamp does: NaN stays NaN.
template <class F> VAE_FAST_FN F clamp(F x, float low, float high) {
  return minimum(splat<F>(high), maximum(splat<F>(low), x));
}

// exp(x), expm1(x) and expm1(x) - x from one polynomial. The last keeps full relative accuracy around 0, where
// subtracting would cancel: it is what a Gaussian KL is made of.
template <class F> struct Exponential { F exp, expm1, expm1_minus; };

template <class F> VAE_FAST_FN Exponential<F> exponential(F x) {
  // Beyond these bounds exp is 0 and infinity in float32; NaN passes.
  const F bounded = clamp(x, -105.0f, 90.0f);
  constexpr float magic = 12582912.0f;  // 1.5·2^23: adding it rounds to an integer, kept in the low bits
  const F shifted = fma(bounded, splat<F>(kLog2e), splat<F>(magic));
  const F k = shifted - splat<F>(magic);
  const u32_of<F> integer = bit_cast<u32_of<F>>(shifted) - 0x4B400000u;
  const F r = fma(k, splat<F>(-kLn2Low), fma(k, splat<F>(-kLn2High), bounded));  // |r| <= ln(2)/2

  // (expm1(r) - r) / r², to 5e-11
  const F square = r * r;
  const F q = polynomial(r, square, 0.5f, 0.1666666716337204f, 0.041666269302368164f, 0.008333263918757439f,
                         0.0013946073595434427f, 0.0001991838653339073f);
  const F residual = square * q;
  const F p = r + residual;  // expm1(r)

  // 2^k as two factors: one alone leaves the exponent's range where exp(x) itself is still finite or subnormal.
  const u32_of<F> half = bit_cast<u32_of<F>>(bit_cast<i32_of<F>>(integer) >> 1);
  const F scale1 = bit_cast<F>((half + 127u) << 23);
  const F scale2 = bit_cast<F>((integer - half + 127u) << 23);
  const F inverse2 = bit_cast<F>((half - integer + 127u) << 23);

  Exponential<F> e;
  e.exp = fma(scale1, p, scale1) * scale2;
  e.expm1 = fma(scale1, p, scale1 - inverse2) * scale2;
  e.expm1_minus = select(k == splat<F>(0.0f), residual, e.expm1 - x);
  return e;
}

template <class F> VAE_FAST_FN F exp(F x) { return exponential(x).exp; }

// log1p(f) for f in [1/√2 - 1, √2 - 1], to 6e-9 relative.
template <class F> VAE_FAST_FN F log1p_reduced(F f) {
  const F square = f * f;
  const F p = polynomial(f, square, 0.33333316445350647f, -0.25000810623168945f, 0.2000228613615036f, -0.16624554991722107f,
                         0.14181190729141235f, -0.13128751516342163f, 0.12881650030612946f, -0.07859622687101364f);
  return fma(square * f, p, fma(square, splat<F>(-0.5f), f));
}

// log(1 + e) for e in [0, 1], as log(1 + exp(-|x|)) needs it.
template <class F> VAE_FAST_FN F log1p_unit(F e) {
  const auto high = e > splat<F>(0.41421356f);
  const F f = select(high, (e - splat<F>(1.0f)) * splat<F>(0.5f), e);  // (1 + e)/2 - 1, exact
  return log1p_reduced(f) + select(high, splat<F>(kLn2), splat<F>(0.0f));
}

template <class F> VAE_FAST_FN F absolute(F x) { return bit_cast<F>(bit_cast<u32_of<F>>(x) & 0x7FFFFFFFu); }

VAE_FAST_NAMESPACE_END
