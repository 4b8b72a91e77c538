// Logarithms, softplus and the gamma function's kin in float32, as elementary.h: polynomials, no branch but one that
// whole vectors take together.
#pragma once

#include "elementary.h"

VAE_FAST_NAMESPACE_BEGIN

// x = 2^k·(1 + f) with 1/√2 <= 1 + f < √2, of a positive normal x. Of 0 and NaN: some finite k and f.
template <class F> struct Split { F k, f; };
constexpr float kSqrtHalf = 0x1.6A09E6p-1f, kSqrtTwo = 0x1.6A09E6p0f;

// Error of split: x in [2^-126, 2^127]; 0 ulp
template <class F> VAE_FAST_FN Split<F> split(F x) {
  constexpr std::uint32_t sqrt_half = 0x3F3504F3u;
  const u32_of<F> from_sqrt_half = bit_cast<u32_of<F>>(x) - sqrt_half;
  const F mantissa = bit_cast<F>((from_sqrt_half & 0x007FFFFFu) + sqrt_half);
  return {to_float<F>(bit_cast<i32_of<F>>(from_sqrt_half) >> 23), mantissa - splat<F>(1.0f)};
}

// log(1 + f) - f for the f of a Split.
// Error of log1p_minus_near: f in [-0.2929, 0.4142]; 3.2 ulp
template <class F> VAE_FAST_FN F log1p_minus_near(F f) {
  const F square = f * f;
  // fit_polynomials.py log1p_minus: (log(1 + f) - f + f²/2)/f³, 1/√2 <= 1 + f <= √2; 3.5e-08 times |f|
  const F p = polynomial(f, square, 0.33333316445350647f, -0.25000545382499695f, 0.20002363622188568f,
                         -0.16633513569831848f, 0.14180804789066315f, -0.1304200291633606f, 0.1286744475364685f,
                         -0.08082135766744614f);
  return square * fma(f, p, splat<F>(-0.5f));
}

// log(x) of a finite x > 0; some finite number for x = 0 (-88: what multiplies it is 0 here).
// Error of log: x in [2^-126, 3.4028234e38]; 1.1 ulp
template <class F> VAE_FAST_FN F log(F x) {
  const Split<F> s = split(x);
  return fma(s.k, splat<F>(kLn2High), s.f + fma(s.k, splat<F>(kLn2Low), log1p_minus_near(s.f)));
}

// Of t and 1 + t, each as exact as the caller has it: log(1 + t), log(1 + t) - t, and (1 + t)·log(1 + t) - t, which is
// what a count of 1 + t times its mean costs beyond it; all without cancellation. At t = -1 the last is 1, the others finite.
template <class F> struct Log1p { F value, minus, deviance; };

// The errors hold where one_plus_t is exact or |t| < 1/4.
// Error of log1p: t in [-0.9999, 1e38]; 1.1 ulp
// Error of log1p_minus: t in [-0.9999, 1e38]; 8.7 ulp
// Error of log1p_deviance: t in [-1, 1e36]; 6.5 ulp, 9.6 without FMA
template <class F> VAE_FAST_FN Log1p<F> log1p(F t, F one_plus_t) {
  const Split<F> s = split(one_plus_t);
  const auto far = (one_plus_t < splat<F>(kSqrtHalf)) | (one_plus_t >= splat<F>(kSqrtTwo));  // k != 0; not of a NaN
  const F f = select(far, s.f, t), rest = fma(s.k, splat<F>(kLn2Low), log1p_minus_near(f));
  const F value = fma(s.k, splat<F>(kLn2High), f + rest);
  return {value, select(far, value - t, rest), fma(one_plus_t, select(far, value, rest), select(far, -t, t * t))};
}

// log(a / b) = k·ln 2 + 2w + cubic, whose k is 0 where a / b is between about 2/3 and 3/2, from a, b and a - b, which may be
// more exact than they are; for a and b from 2^-126 to 2^126. What a caller knows on paper of 2w it need not compute.
template <class F> struct LogRatio {
  F k, w, cubic;
  VAE_FAST_FN F value() const { return fma(k, splat<F>(0x1p-23f * kLn2), fma(splat<F>(2.0f), w, cubic)); }
  VAE_FAST_FN auto is_near() const { return k == splat<F>(0.0f); }
};
// 1/b for a b in the middle of the range.
template <class F> VAE_FAST_FN F reciprocal(F b) { return divide(splat<F>(1.0f), b); }

// Error of log_ratio: a in [1e-30, 1e30], b in [1e-30, 1e30]; 2 ulp, 2.6 without FMA
// Error of log_ratio_cubic: a in [1e-30, 1e30], b in [1e-30, 1e30]; 20 ulp
template <class F> VAE_FAST_FN LogRatio<F> log_ratio(F a, F b, F apart) {
  // The bits of a number are nearly its logarithm: their difference, rounded to whole exponents, is 2^23·k.
  const u32_of<F> k = (bit_cast<u32_of<F>>(a) - bit_cast<u32_of<F>>(b) + 0x00400000u) & 0xFF800000u;
  const F scaled = bit_cast<F>(bit_cast<u32_of<F>>(b) + k), exponent = to_float<F>(bit_cast<i32_of<F>>(k));
  const F difference = select(exponent == splat<F>(0.0f), apart, a - scaled), sum = a + scaled;
  const F r = reciprocal(sum), quotient = difference * r, w = fma(fma(-sum, quotient, difference), r, quotient);
  // fit_polynomials.py log_ratio: (2·atanh(w) - 2w)/w³ of w², w <= 1/5; 7.5e-07 relative
  const F square = w * w, q = polynomial(square, square * square, 0.6666671633720398f, 0.3997897505760193f, 0.29956668615341187f);
  return {exponent, w, w * square * q};
}

// 1/y, and factor·log(x) + rest, where the sum is not small: on a GPU 1/y errs by 1 ulp, and the logarithm by 1.7e-7.
template <class F> VAE_FAST_FN F reciprocal_of_small_term(F y) { return reciprocal(y); }
template <class F> VAE_FAST_FN F add_log(F factor, F x, F rest) { return fma(factor, log(x), rest); }

// log(1 + exp(-|x|))
// Error of softplus_tail: x in [-87, 87]; 3.1 ulp
template <class F> VAE_FAST_FN F softplus_tail(F x) { return log1p_unit(exp_nonpositive(-absolute(x))); }
// log(1 + exp(x))
// Error of softplus: x in [-87, 1e38]; 3.1 ulp
template <class F> VAE_FAST_FN F softplus(F x) { return maximum(splat<F>(0.0f), x) + softplus_tail(x); }

// σ(x) and σ(-x): each exact where the other rounds to 1.
template <class F> struct Sigmoid { F value, complement; };

// Error of sigmoid: x in [-87, 1e38]; 2.9 ulp
// Error of sigmoid_complement: x in [-1e38, 87]; 2.9 ulp
template <class F> VAE_FAST_FN Sigmoid<F> sigmoid(F x) {
  const F one = splat<F>(1.0f), e = exp_nonpositive(-absolute(x)), larger = divide(one, one + e), smaller = e * larger;
  const auto negative = x < splat<F>(0.0f);
  return {select(negative, smaller, larger), select(negative, larger, smaller)};
}

// y shifted into [1, ∞), where series in 1/y hold, and whether it was.
template <class F> struct Shifted { F inverse, by; };

// Error of shifted: y in [2^-126, 1e37]; 1.6 ulp
template <class F> VAE_FAST_FN Shifted<F> shifted(F y) {
  const F one = splat<F>(1.0f), by = select(y < one, one, splat<F>(0.0f));
  return {divide(one, y + by), by};
}

// Stirling's error log Γ(y) - (y - 1/2)·log y + y - log(2π)/2: of y >= 1 from w = 1/y; of y > 0.
// Error of stirling_of_inverse: w in [1e-37, 1]; 2.9 ulp
template <class F> VAE_FAST_FN F stirling_of_inverse(F w) {
  // fit_polynomials.py stirling: y·(Stirling's error of y) of w = 1/y, 0 <= w <= 1; 5.4e-09 absolute
  return w * polynomial(w, w * w, 0.0833333283662796f, -7.899429732560748e-08f, -0.002773376414552331f,
                        -5.0487666158005595e-05f, 0.0010447208769619465f, -0.0006297528743743896f,
                        0.00013711379142478108f);
}
// The same of y >= 2/3.
// Error of stirling_wide: w in [1e-37, 1.5]; 3.5 ulp
template <class F> VAE_FAST_FN F stirling_wide(F w) {
  // fit_polynomials.py stirling_wide: y·(Stirling's error of y) of w = 1/y, 0 <= w <= 3/2; 5.5e-09 absolute
  return w * polynomial(w, w * w, 0.0833333358168602f, -5.215127885094262e-07f, -0.00276659126393497f, -9.09664886421524e-05f,
                        0.001160544459708035f, -0.0007997846696525812f, 0.00026057439390569925f, -3.5122189729008824e-05f);
}
// Error of stirling_series: y in [1, 1e36]; 3.3 ulp
template <class F> VAE_FAST_FN F stirling_series(F y) { return stirling_of_inverse(divide(splat<F>(1.0f), y)); }
// Error of stirling: y in [1, 1e36]; 3.3 ulp
// Error of stirling_small: y in [1e-8, 1]; 33.7 ulp, 38.5 without FMA
template <class F> VAE_FAST_FN F stirling(F y) {
  const F series = stirling_of_inverse(shifted(y).inverse);
  const auto small = y < splat<F>(1.0f);
  if (!any<F>(small)) return series;
  // Γ(y + 1) = y·Γ(y)
  const F one = splat<F>(1.0f), step = log(one + divide(one, y));
  return select(small, fma(y + splat<F>(0.5f), step, series - one), series);
}

// log Γ(x + 1) - x·log x + x, of 1e-8 <= x < 2^120.
// Error of log_factorial_minus: x in [1e-8, 1e36]; 3.7 ulp
template <class F> VAE_FAST_FN F log_factorial_minus(F x) {
  const F large = fma(splat<F>(0.5f), log(splat<F>(2.0f * kPi) * x), stirling_series(x));
  const auto fraction = x < splat<F>(1.0f);
  if (!any<F>(fraction)) return large;
  // fit_polynomials.py log_factorial: log Γ(1 + x)/x, 0 <= x <= 1; 5.8e-08 absolute
  const F over_x = polynomial(x, x * x, -0.5772156119346619f, 0.8224625587463379f, -0.40055522322654724f, 0.269104540348053f,
                              -0.19880534708499908f, 0.14025796949863434f, -0.08021333813667297f, 0.03038938343524933f,
                              -0.005424926057457924f);
  return select(fraction, x * (splat<F>(1.0f) - log(x) + over_x), large);
}

// Of r(y) = digamma(y) - log y: r(b) - r(a) for b >= a > 0, where both may be large and nearly the same.
// Error of digamma_tail: w in [1e-8, 1]; 6.8 ulp
template <class F> VAE_FAST_FN F digamma_tail(F w) {  // -(r(1/w) + w/2) / w²
  // fit_polynomials.py digamma_tail: (log(y) - 1/(2y) - digamma(y))·y² of w = 1/y, 0 <= w <= 1; 4.1e-08 absolute
  return polynomial(w, w * w, 0.08333329856395721f, 2.326733010704629e-06f, -0.008350501768290997f, -6.376489182002842e-05f,
                    0.004938007798045874f, -0.003506414359435439f, 0.0008627527276985347f);
}
// Its terms are distance/(2ab), 1/(12a²) and 1/(12b²).
// Error of digamma_difference: a in [1, 1e9], b in [1, 1e9]; 5.4 ulp of its terms
// Error of digamma_difference_careful: a in [1, 1e30], b in [1, 1e30]; 5.4 ulp of its terms
// Error of digamma_difference_small: a in [1e-8, 1], b in [1e-8, 1e9]; 2.2 ulp of 1/a
template <bool kCareful = false, class F> VAE_FAST_FN F digamma_minus_log_difference(F b, F a, F distance) {  // distance = b - a, exact
  const Shifted<F> sb = shifted(b), sa = shifted(a);
  const F one = splat<F>(1.0f), wb = sb.inverse, wa = sa.inverse;
  const F between = distance + (sb.by - sa.by);  // of the shifted ones
  const F half = splat<F>(0.5f) * between, tails = wa * wa * digamma_tail(wa) - wb * wb * digamma_tail(wb);
  const F series = kCareful ? fma(half * wb, wa, tails) : fma(half, wa * wb, tails);  // wa·wb may leave float32
  const auto small = a < one;
  if (!any<F>(small)) return series;
  // digamma(y) = digamma(y + 1) - 1/y, so r(y) = r(y + 1) + log((y + 1)/y) - 1/y
  const F over_a = divide(one, a), over_b = divide(one, b), step_a = log(one + over_a) - over_a;
  return series + (select(b < one, log(one + over_b) - over_b, splat<F>(0.0f)) - select(small, step_a, splat<F>(0.0f)));
}

VAE_FAST_NAMESPACE_END
