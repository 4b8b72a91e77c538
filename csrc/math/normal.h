// Two random words to two independent standard normals (Box and Muller, 1958), within 4e-6 of the exact transform.
#pragma once

#include "elementary.h"

VAE_FAST_NAMESPACE_BEGIN

template <class F> struct NormalPair { F first, second; };

// u1 = (w0 + 1/2)·2^-32, u2 = w1·2^-32, r = sqrt(-2 ln u1);  first = r·cos(2π u2), second = r·sin(2π u2)
// Error of normal_first: w0 in words, w1 in words; 2.3e-6 absolute, 2.4e-6 without FMA
// Error of normal_second: w0 in words, w1 in words; 2.3e-6 absolute, 2.4e-6 without FMA
template <class F> VAE_FAST_FN NormalPair<F> box_muller(u32_of<F> w0, u32_of<F> w1) {
  // As a signed number w0 measures the distance to the nearer end of (0, 1), so u1 near 1 keeps all its digits:
  // u1 = 1 + y with y < 0 for w0 >= 2^31, else u1 = y = 2^k·(1 + f) with -1/2 <= f < 0.
  const i32_of<F> distance = bit_cast<i32_of<F>>(w0);
  const auto upper = distance < 0;
  const F y = fma(to_float<F>(distance), splat<F>(0x1p-32f), splat<F>(0x1p-33f));
  const u32_of<F> bits = bit_cast<u32_of<F>>(y);
  const F mantissa = bit_cast<F>((bits & 0x007FFFFFu) | 0x3F000000u);
  const F f = select(upper, y, mantissa - splat<F>(1.0f));
  const F k = to_float<F>(bit_cast<i32_of<F>>(bits - 0x3F000000u) >> 23);
  const F of_k = select(upper, splat<F>(0.0f), k * splat<F>(-2.0f * kLn2));
  // fit_polynomials.py box_muller_log: -2·log(1 + f)/f, -1/2 <= f <= 0; 3.7e-07 absolute
  const F p = polynomial(f, f * f, -1.9999996423721313f, 1.0000842809677124f, -0.6633670926094055f, 0.5487973093986511f,
                         -0.05149223655462265f, 1.642842411994934f, 2.2677600383758545f, 2.4296703338623047f);
  const F r = sqrt(fma(f, p, of_k));

  // The angle, less π where that turns it back into [-π/2, π/2): a sign of both. Then from half of it, t:
  // sin 2t = 2·sin t·cos t, cos 2t = 1 - 2·sin² t. The reduction is exact in integers.
  const u32_of<F> turned = w1 + 0x40000000u;
  const F t = to_float<F>(bit_cast<i32_of<F>>((turned & 0x7FFFFFFFu) - 0x40000000u)) * splat<F>(0x1.921fb6p-31f);
  const F t2 = t * t, t4 = t2 * t2;
  // fit_polynomials.py sine: (sin(t) - t)/t³ of t², t <= π/4; 5.5e-09 times t²
  const F sine = fma(t * t2, polynomial(t2, t4, -0.16666655242443085f, 0.008332177996635437f, -0.0001951729936990887f), t);
  // fit_polynomials.py cosine: cos(t) of t², t <= π/4; 5.5e-08 absolute
  const F cosine = polynomial(t2, t4, 1.0f, -0.4999985694885254f, 0.041655026376247406f, -0.0013585909036919475f);
  const F radius = bit_cast<F>(bit_cast<u32_of<F>>(r) ^ (turned & 0x80000000u)), chord = (radius + radius) * sine;
  return {fma(-chord, sine, radius), chord * cosine};
}

VAE_FAST_NAMESPACE_END
