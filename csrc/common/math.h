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
constexpr float kPi = 3.14159265358979324f;
constexpr float kLog2Pi = 1.83787706640934548f;
constexpr float kLargest = 0x1.FFFFFEp127f;
constexpr float kInfinity = __builtin_inff(), kNaN = __builtin_nanf("");

// x clamped as torch.clamp does: NaN stays NaN.
template <class F> VAE_FAST_FN F clamp(F x, float low, float high) {
  return minimum(splat<F>(high), maximum(splat<F>(low), x));
}

// x = k·ln 2 + r with |r| <= ln(2)/2, expm1(r) = p, and p - r = residual without cancellation.
template <class F> struct Reduced { F k; u32_of<F> bits; F p, residual; };

template <class F> VAE_FAST_FN Reduced<F> reduce(F x) {
  constexpr float magic = 12582912.0f;  // 1.5·2^23: adding it rounds to an integer k, kept in the low bits
  const F shifted = fma(x, splat<F>(kLog2e), splat<F>(magic));
  const F k = shifted - splat<F>(magic);
  const F r = fma(k, splat<F>(-kLn2Low), fma(k, splat<F>(-kLn2High), x));
  // (expm1(r) - r) / r², to 5e-11
  const F square = r * r;
  const F q = polynomial(r, square, 0.5f, 0.1666666716337204f, 0.041666269302368164f, 0.008333263918757439f,
                         0.0013946073595434427f, 0.0001991838653339073f);
  const F residual = square * q;
  return {k, bit_cast<u32_of<F>>(shifted), r + residual, residual};
}

constexpr std::uint32_t kMagicBits = 0x4B400000u, kOneBits = 0x3F800000u;  // of 1.5·2^23 and of 1

// exp(x) with subnormal results and infinity, from x bounded to [-105, 90], beyond which it is 0 or infinite.
template <class F> VAE_FAST_FN F bounded(F x) { return clamp(x, -105.0f, 90.0f); }
template <class F> VAE_FAST_FN F exp(const Reduced<F>& e) {
  // 2^k as two factors: one alone leaves the exponent's range where exp(x) itself is still finite or subnormal.
  const u32_of<F> exponent = e.bits << 23, half = (e.bits << 22) & 0xFF800000u;
  const F scale1 = bit_cast<F>(half + kOneBits), scale2 = bit_cast<F>(exponent - half + kOneBits);
  return fma(scale1, e.p, scale1) * scale2;
}
template <class F> VAE_FAST_FN F exp(F x) { return exp(reduce(bounded(x))); }

// exp(x) held between 2^-126 and 2^127, NaN passes: one factor is enough, and nobody minds where exp(x) leaves float32.
template <class F> VAE_FAST_FN F exp_saturated(F x) {
  const Reduced<F> e = reduce(clamp(x, -87.33654f, 88.02969f));
  const F scale = bit_cast<F>((e.bits << 23) + kOneBits);
  return fma(scale, e.p, scale);
}

// exp(x) for x <= 0 (NaN passes), where nobody minds that a subnormal result becomes 2^-126.
template <class F> VAE_FAST_FN F exp_nonpositive(F x) {
  const Reduced<F> e = reduce(maximum(splat<F>(-87.33654f), x));
  const F scale = bit_cast<F>((e.bits << 23) + kOneBits);
  return fma(scale, e.p, scale);
}

// exp(x) and exp(x) - 1 for x <= 0.
template <class F> struct Nonpositive { F exp, expm1; };

template <class F> VAE_FAST_FN Nonpositive<F> nonpositive(F x) {
  const Reduced<F> e = reduce(maximum(splat<F>(-87.33654f), x));
  const F scale = bit_cast<F>((e.bits << 23) + kOneBits);
  return {fma(scale, e.p, scale), fma(scale, e.p, scale - splat<F>(1.0f))};
}
template <class F> VAE_FAST_FN F expm1_nonpositive(F x) { return nonpositive(x).expm1; }

// exp(x/2), expm1(x) and expm1(x) - x from one polynomial: what a Gaussian sample and its KL are made of. Around 0 the
// last is a sum of terms that are never negative, so it keeps its relative accuracy where subtracting would cancel.
template <class F> struct Exponential { F root, expm1, expm1_minus; };

template <class F> VAE_FAST_FN Exponential<F> exponential(F x) {
  const Reduced<F> half = reduce(bounded(splat<F>(0.5f) * x));
  const F root = exp(half), p = half.p, far = fma(root, root, splat<F>(-1.0f));
  const auto near = half.k == splat<F>(0.0f);  // |x| <= ln 2, and there root = 1 + p
  return {root, select(near, fma(p, p, p + p), far), select(near, fma(p, p, half.residual + half.residual), far - x)};
}

// log(1 + e) for e in [0, 1], to 5e-9 relative.
template <class F> VAE_FAST_FN F log1p_unit(F e) {
  return e * polynomial(e, e * e, 1.0f, -0.4999990165233612f, 0.3332996368408203f, -0.24954134225845337f,
                        0.1967593878507614f, -0.15305592119693756f, 0.10603654384613037f, -0.05695952847599983f,
                        0.019851459190249443f, -0.003244024468585849f);
}

template <class F> VAE_FAST_FN F absolute(F x) { return bit_cast<F>(bit_cast<u32_of<F>>(x) & 0x7FFFFFFFu); }

VAE_FAST_NAMESPACE_END
