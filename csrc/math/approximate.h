// The GPU's approximations, one instruction each of the multifunction unit, for csrc/cuda alone: a CPU kernel has no use
// for them, and their bits differ between architectures. Then what is made of them.
//
// The errors are the largest that the PTX manual allows. Elsewhere than on a GPU, which is in the tests' emulation, a
// result is off by just that much, up for some arguments and down for the others, so that the tests prove the contracts
// with the manual's bounds and not with one chip's luck. Numbers below 2^-126 count as 0, going in and coming out (.ftz).
#pragma once

#include "normal.h"
#include "rough.h"
#include "special.h"

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

// The body of a function of x: the instruction, or elsewhere than on a GPU `otherwise`.
#if defined(__CUDA_ARCH__)
#define VAE_FAST_APPROXIMATION(instruction, otherwise)                \
  float y;                                                            \
  asm(instruction ".approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));      \
  return y
#else
#define VAE_FAST_APPROXIMATION(instruction, otherwise) return otherwise
#endif

// log2(x): off by 2^-22, absolute for 1/2 < x < 2, elsewhere relative. -inf of 0.
VAE_FAST_FN float approximate_log2(float x) {
  VAE_FAST_APPROXIMATION("lg2", off_by(x, __builtin_log2(static_cast<double>(flushed(x))), 0x1p-22,
                                       x > 0.5f && x < 2.0f ? 0x1p-22 : 0));
}
// 2^x: off by 2^-22, relative.
VAE_FAST_FN float approximate_exp2(float x) {
  VAE_FAST_APPROXIMATION("ex2", off_by(x, __builtin_exp2(static_cast<double>(flushed(x))), 0x1p-22));
}
// 1/x: off by 1 ulp.
VAE_FAST_FN float approximate_reciprocal(float x) {
  VAE_FAST_APPROXIMATION("rcp", off_by(x, 1.0 / static_cast<double>(flushed(x)), 0x1p-23));
}
// √x: off by 2^-23, relative.
VAE_FAST_FN float approximate_sqrt(float x) {
  VAE_FAST_APPROXIMATION("sqrt", off_by(x, __builtin_sqrt(static_cast<double>(flushed(x))), 0x1p-23));
}
#undef VAE_FAST_APPROXIMATION

// ---- the functions of Full and Rough that are shorter than those of float ----

template <bool kFull> VAE_FAST_FN Approximate<kFull> reciprocal_of_small_term(Approximate<kFull> y) {
  return approximate_reciprocal(y.value);
}
// The exponent is added exactly, so that the error is absolute: 2^-22·ln 2.
VAE_FAST_FN Full add_log(Full factor, Full x, Full rest) {
  const std::uint32_t exponent = (bit_cast<std::uint32_t>(x) - bit_cast<std::uint32_t>(kSqrtHalf)) & 0xFF800000u;
  const float k = static_cast<float>(bit_cast<std::int32_t>(exponent));
  const float log2 = approximate_log2(bit_cast<float>(bit_cast<std::uint32_t>(x) - exponent));
  return fma(kLn2 * factor.value, fma(k, 0x1p-23f, log2), rest.value);
}
VAE_FAST_FN Full divide(Full a, Full b) { return divide(a.value, b.value); }
VAE_FAST_FN Full reciprocal(Full b) {
  const float r = approximate_reciprocal(b.value);
  return fma(fma(-b.value, r, 1.0f), r, r);
}

VAE_FAST_FN Rough divide(Rough a, Rough b) { return a * approximate_reciprocal(b.value); }
VAE_FAST_FN Rough reciprocal(Rough b) { return approximate_reciprocal(b.value); }
VAE_FAST_FN Rough add_log(Rough factor, Rough x, Rough rest) {
  return fma(kLn2 * factor.value, approximate_log2(x.value), rest.value);
}

VAE_FAST_FN Rough exp_nonpositive(Rough x) { return approximate_exp2(x.value * kLog2e); }

VAE_FAST_FN Factors<Rough> exp_factors_below(Rough x) {
  const Rough root = approximate_exp2(x.value * (0.5f * kLog2e));
  return {root, root};
}

VAE_FAST_FN Rough log1p_unit(Rough e) {
  // fit_polynomials.py log1p_8: log(1 + e)/e, 0 <= e <= 1; 6.5e-08 relative
  return e * polynomial(e, 0.9999999403953552f, -0.4999949336051941f, 0.3331909775733948f, -0.2484298199415207f,
                        0.19106005132198334f, -0.13663241267204285f, 0.07822591066360474f, -0.02950521558523178f,
                        0.005232688970863819f);
}

// exponential(logvar/2), in the arithmetic of F.
template <class F> VAE_FAST_FN Exponential<F> exponential_of_logvar(float logvar) { return exponential(0.5f * logvar); }
template <> VAE_FAST_FN Exponential<Rough> exponential_of_logvar<Rough>(float x) {
  const float root = approximate_exp2(minimum(127.0f, x * (0.25f * kLog2e))), square = x * x, all = root * root;
  // fit_polynomials.py exponential_16: (exp(x) - 1 - x)/(2x²), |x| <= 1/4; 1.4e-06 relative
  const Rough series = polynomial(Rough(x), 0.24999965727329254f, 0.08333347737789154f, 0.020876750349998474f,
                                  0.004168732091784477f);
  const float near = square * series.value;
  const float far = fma(0.5f * all, all, -0.5f);
  const bool is_near = absolute(x) < 0.25f;
  return {root, root, is_near ? fma(0.5f, x, near) : far, is_near ? near : fma(-0.5f, x, far)};
}

// ---- Box and Muller's transform ----

// As box_muller in normal.h, within 4e-6 of the exact transform too:
//   * log2 is off by 2^-22 absolute near 1, where r is small and the root would magnify it. So within 2^-6 of 1 two terms
//     of log(1 + y) stand in. With the root, r is off by 1.7e-6 at most.
//   * Cosine and sine are polynomials over half a turn; the other half is a flipped sign of r. The angle is off by
//     1.6e-7, 1.1e-6 in the result. The hardware's own are off by 2^-20.5 in a result of up to 6.7: too much.
VAE_FAST_FN NormalPair<float> approximate_box_muller(std::uint32_t w0, std::uint32_t w1) {
  const float u = fma(static_cast<float>(w0), 0x1p-32f, 0x1p-33f);
  // -log2(1 + y), y = (f + 1/2)·2^-32 multiplied out; f is exact where y is small.
  const float f = static_cast<float>(bit_cast<std::int32_t>(w0));
  const float near = fma(f, fma(f, 3.9619741044102704e-20f, -3.35894935470221e-10f), -1.679474677351105e-10f);
  const float r = approximate_sqrt(u > 1 - 0x1p-6f ? near : -approximate_log2(u));
  // The top bit of w1 is half a turn, which flips both signs; then a quarter turn, and x.
  const float x = fma(static_cast<float>(w1 << 1), 0x1.921fb6p-31f, -0x1.921fb6p0f);
  const Rough x2 = x * x;
  // fit_polynomials.py cosine_scaled: √(2·ln 2)·cos(x) of x², x <= π/2; 1.6e-07 absolute
  const Rough cosine = polynomial(x2, 1.1774099677266667f, -0.5887038968047316f, 0.04905512219158674f,
                                  -0.0016311490301485422f, 2.7261671196336427e-05f);
  // fit_polynomials.py sine_scaled: -√(2·ln 2)·sin(x)/x of x², x <= π/2; 2.6e-08 times x
  const Rough sine = polynomial(x2, -1.1774099949521675f, 0.19623477966758793f, -0.009811239768634692f,
                                0.00023313775480892830f, -3.0500671240683797e-06f);
  const float radius = bit_cast<float>(bit_cast<std::uint32_t>(r) ^ (w1 & 0x80000000u));
  return {radius * (x * sine.value), radius * cosine.value};
}

VAE_FAST_NAMESPACE_END
