// exp, expm1, log1p and their kin in float32: branch-free polynomials, so that a lane never waits for another and every
// engine gets the same bits from the same instructions. The coefficients are made by
// scripts/fit_polynomials.py; the errors beside them are those of the polynomial alone.
#pragma once

#include <limits>

#include "portable.h"

VAE_FAST_NAMESPACE_BEGIN

constexpr float kLog2e = 1.44269504088896341f;
constexpr float kLn2High = 0.693359375f;  // nine bits: k·kLn2High is exact for |k| < 2^15
constexpr float kLn2Low = -2.12194440e-4f;
constexpr float kLn2 = 0.693147180559945309f;
constexpr float kPi = 3.14159265358979324f;
constexpr float kLog2Pi = 1.83787706640934548f;
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// x clamped as torch.clamp does: NaN stays NaN.
// Error of clamp: x in [-3.4028234e38, 3.4028234e38]; 0 ulp
template <class F> VAE_FAST_FN F clamp(F x, float low, float high) {
  return minimum(splat<F>(high), maximum(splat<F>(low), x));
}

// x = k·kStep·ln 2 + r with |r| <= kStep·ln(2)/2, expm1(r) = p, and p - r = residual without cancellation; kStep is 1 or 2,
// or -1 or -2 for the same of -x.
template <class F> struct Reduced { F k; u32_of<F> bits; F p, residual; };

// Error of reduce_1: x in [-0.3465, 0.3465]; 1.3 ulp
// Error of reduce_2: x in [-0.6931, 0.6931]; 1.5 ulp
template <int kStep, class F> VAE_FAST_FN Reduced<F> reduce(F x) {
  constexpr float magic = 12582912.0f;  // 1.5·2^23: adding it rounds to an integer k, kept in the low bits
  const F shifted = fma(x, splat<F>(kLog2e / kStep), splat<F>(magic));
  const F k = shifted - splat<F>(magic);
  constexpr float step = kStep < 0 ? -kStep : kStep;
  const F r = fma(k, splat<F>(-step * kLn2Low), fma(k, splat<F>(-step * kLn2High), kStep < 0 ? -x : x));
  const F square = r * r;
  F q;
  if constexpr (step == 2) {
    // fit_polynomials.py exp_wide: (exp(r) - 1 - r)/r², |r| <= 1.002·ln 2; 1.1e-08 relative
    q = polynomial(r, square, 0.5f, 0.1666667014360428f, 0.04166664928197861f, 0.00833277314901352f,
                   0.001388945383951068f, 0.00020074357453268021f, 2.487877600702923e-05f);
  } else {
    // fit_polynomials.py exp_near: (exp(r) - 1 - r)/r², |r| <= 0.501·ln 2; 1.4e-07 relative
    q = polynomial(r, square, 0.5f, 0.1666657626628876f, 0.04166685417294502f, 0.008363259956240654f,
                   0.0013901334023103118f);
  }
  return {k, bit_cast<u32_of<F>>(shifted), fma(square, q, r), square * q};
}

constexpr std::uint32_t kMagicBits = 0x4B400000u, kOneBits = 0x3F800000u;  // of 1.5·2^23 and of 1

// 2^k of -126 <= k <= 127, and 0 of k = -127.
// Error of power: k in [-126, 127]; 0 ulp
template <class F> VAE_FAST_FN F power(const Reduced<F>& e) { return bit_cast<F>((e.bits << 23) + kOneBits); }

// exp(x) with subnormal results and infinity, from x bounded to [-105, 90], beyond which it is 0 or infinite: 2^k twice,
// as 4^k alone leaves the exponent's range where exp(x) itself is still finite or subnormal.
// Error of bounded: x in [-3.4028234e38, 3.4028234e38]; 0 ulp
template <class F> VAE_FAST_FN F bounded(F x) { return clamp(x, -105.0f, 90.0f); }
template <class F> VAE_FAST_FN F exp(const Reduced<F>& e) { return fma(power(e), e.p, power(e)) * power(e); }
// Error of exp: x in [-1e30, 88.7228]; 1.5 ulp
template <class F> VAE_FAST_FN F exp(F x) { return exp(reduce<2>(bounded(x))); }

// exp(x) for x <= 88 and exp(x) - 1 for x <= 0 (NaN passes), for callers that accept 0 for an exp(x) below 2^-126.5.
template <class F> struct Nonpositive { F exp, expm1; };

template <class F> VAE_FAST_FN Nonpositive<F> nonpositive(F x) {
  const Reduced<F> e = reduce<1>(maximum(splat<F>(-88.02969f), x));
  return {fma(power(e), e.p, power(e)), fma(power(e), e.p, power(e) - splat<F>(1.0f))};
}
// Error of exp_nonpositive: x in [-87.3, 88]; 1.2 ulp
template <class F> VAE_FAST_FN F exp_nonpositive(F x) { return nonpositive(x).exp; }
// Error of expm1_nonpositive: x in [-1e30, 0]; 1.2 ulp
template <class F> VAE_FAST_FN F expm1_nonpositive(F x) { return nonpositive(x).expm1; }

// exp(x) as two factors, for what is multiplied by one after the other: from 2^-252 to 2^254, and 0 and infinity.
template <class F> struct Factors {
  F first, second;
  VAE_FAST_FN F times(F d) const { return d * first * second; }
};

constexpr float kLeastExponent = -176.0f, kMostExponent = 176.0594f;
// Error of exp_factors: x in [-174, 176], d in [-1e30, 1e30]; 2.9 ulp
template <class F> VAE_FAST_FN Factors<F> exp_factors(F x) {
  const Reduced<F> e = reduce<2>(clamp(x, kLeastExponent, kMostExponent));
  return {power(e), select(x == splat<F>(kInfinity), x, fma(power(e), e.p, power(e)))};
}
// The same where x <= kMostExponent.
// Error of exp_factors_below: x in [-174, 176], d in [-1e30, 1e30]; 2.9 ulp
template <class F> VAE_FAST_FN Factors<F> exp_factors_below(F x) {
  const Reduced<F> e = reduce<2>(maximum(splat<F>(kLeastExponent), x));
  return {power(e), fma(power(e), e.p, power(e))};
}

// exp(h) as two factors, expm1(2h)/2 and (expm1(2h) - 2h)/2 from one polynomial: what a Gaussian sample and its KL are
// made of, for h half a log-variance. Around 0 the last is a sum of terms that are never negative, so it keeps its relative accuracy
// where subtracting would cancel; halves stay finite where expm1 does not.
template <class F> struct Exponential { F first, second, half_expm1, half_expm1_minus; };

// Error of exponential: h in [-87.3, 88.7]; 1.6 ulp
// Error of half_expm1: h in [-1e30, 44.3]; 5.2 ulp
// Error of half_expm1_minus: h in [-1e30, 44.3]; 10.5 ulp
template <class F> VAE_FAST_FN Exponential<F> exponential(F h) {
  const F half = splat<F>(0.5f);
  const Reduced<F> e = reduce<2>(clamp(h, kLeastExponent, kMostExponent));
  const F first = power(e), second = select(h == splat<F>(kInfinity), h, fma(first, e.p, first));
  const F root = first * second, p = e.p, half_p = half * p, far = fma(half * root, root, -half);
  const auto near = e.k == splat<F>(0.0f);  // |h| <= ln 2, and there root = 1 + p
  return {first, second, select(near, fma(half_p, p, p), far), select(near, fma(half_p, p, e.residual), far - h)};
}

// Error of absolute: x in [-3.4028234e38, 3.4028234e38]; 0 ulp
template <class F> VAE_FAST_FN F absolute(F x) { return bit_cast<F>(bit_cast<u32_of<F>>(x) & 0x7FFFFFFFu); }

// d·exp(x), right wherever it fits float32, though exp(x) may not: 2^k in four factors, one after the other. 0 for d = 0,
// but NaN where x is infinite too.
// Error of times_exp: d in [-1e38, 1e38], x in [-350, 350]; 4.4 ulp
template <class F> VAE_FAST_FN F times_exp(F d, F x) {
  const Reduced<F> e = reduce<1>(clamp(x, -350.0f, 350.0f));
  const u32_of<F> k = e.bits - kMagicBits, quarter = bit_cast<u32_of<F>>(bit_cast<i32_of<F>>(k) >> 2);
  const F scale = bit_cast<F>((quarter << 23) + kOneBits), rest = bit_cast<F>(((k - quarter * 3u) << 23) + kOneBits);
  const F last = select(x == splat<F>(kInfinity), x, fma(rest, e.p, rest));
  return d * scale * scale * scale * last;
}

// d²·exp(-logvar)/2 as half·root, and its derivative by d, slope: right wherever they fit float32, though exp(-logvar)
// may not.
template <class F> struct ScaledSquare { F half, root, slope; };
constexpr float kFarLogvar = 174.0f;  // beyond, 2^k of 4^k leaves the exponent's range

// With kNear the caller knows that no |logvar| is beyond kFarLogvar.
// Error of scaled_square: d in [-1e38, 1e38], logvar in [-350, 350]; 4.1 ulp
// Error of scaled_square_slope: d in [2^-126, 1e38], logvar in [-350, 350]; 2.9 ulp
template <bool kNear = false, class F> VAE_FAST_FN ScaledSquare<F> scaled_square(F d, F logvar) {
  const Reduced<F> e = reduce<-2>(logvar);  // exp(-logvar) = (1 + p)·4^k
  const F root = d * power(e), half = root * fma(splat<F>(0.5f), e.p, splat<F>(0.5f));
  const ScaledSquare<F> near{half, root, half * (power(e) + power(e))};
  const auto far = absolute(logvar) > splat<F>(kFarLogvar);
  if (kNear || !any<F>(far)) return near;
  const F h = splat<F>(-0.5f) * logvar, far_root = times_exp(d, h);
  return {select(far, splat<F>(0.5f) * far_root, half), select(far, far_root, root),
          select(far, times_exp(far_root, h), near.slope)};
}

// log(1 + e) for e in [0, 1].
// Error of log1p_unit: e in [0, 1]; 2.2 ulp, 2.6 without FMA
template <class F> VAE_FAST_FN F log1p_unit(F e) {
  // fit_polynomials.py log1p: log(1 + e)/e, 0 <= e <= 1; 3.0e-08 relative
  return e * polynomial(e, e * e, 1.0f, -0.4999990165233612f, 0.3332996368408203f, -0.24954134225845337f,
                        0.1967593878507614f, -0.15305592119693756f, 0.10603654384613037f, -0.05695952847599983f,
                        0.019851459190249443f, -0.003244024468585849f);
}

VAE_FAST_NAMESPACE_END
