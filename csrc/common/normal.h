// Two random words to two independent standard normals (Box and Muller, 1958), within 4e-6 of the exact transform.
#pragma once

#include "math.h"

VAE_FAST_NAMESPACE_BEGIN

template <class F> struct NormalPair { F first, second; };

// u1 = (w0 + 1/2)·2^-32, u2 = w1·2^-32, r = sqrt(-2 ln u1);  first = r·cos(2π u2), second = r·sin(2π u2)
template <class F> VAE_FAST_FN NormalPair<F> box_muller(u32_of<F> w0, u32_of<F> w1) {
  // As a signed number w0 measures the distance to the nearer end of (0, 1), so u1 near 1 keeps all its digits:
  // u1 = y for w0 < 2^31, u1 = 1 + y with y < 0 above.
  const i32_of<F> distance = bit_cast<i32_of<F>>(w0);
  const F y = (to_float<F>(distance) + splat<F>(0.5f)) * splat<F>(0x1p-32f);
  const F u1 = select(distance < 0, y + splat<F>(1.0f), y);

  // u1 = 2^k·(1 + f) with 1/√2 <= 1 + f < √2; k = 0 only where u1 = 1 + y, and there f = y exactly.
  constexpr std::uint32_t sqrt_half = 0x3F3504F3u;
  const u32_of<F> from_sqrt_half = bit_cast<u32_of<F>>(u1) - sqrt_half;
  const i32_of<F> k = bit_cast<i32_of<F>>(from_sqrt_half) >> 23;
  const F mantissa = bit_cast<F>((from_sqrt_half & 0x007FFFFFu) + sqrt_half);
  const F f = select(k == 0, y, mantissa - splat<F>(1.0f));
  // -2·log1p(f)/f to 1.7e-7, which is 6e-7 in the normal furthest out
  const F p = polynomial(f, f * f, -1.9999998807907104f, 1.000006914138794f, -0.6667121648788452f, 0.49943119287490845f,
                         -0.3976846933364868f, 0.344248503446579f, -0.32676294445991516f, 0.20757438242435455f);
  const F r = sqrt(fma(to_float<F>(k), splat<F>(-2.0f * kLn2), f * p));

  // The angle, reduced exactly in integers: 2π u2 = quadrant·π/2 + t with |t| <= π/4.
  const u32_of<F> turned = w1 + 0x20000000u;
  const F t = to_float<F>(bit_cast<i32_of<F>>((turned & 0x3FFFFFFFu) - 0x20000000u)) * splat<F>(1.46291807926715968e-9f);
  const F t2 = t * t, t4 = t2 * t2;
  const F sine = fma(t * t2, polynomial(t2, t4, -0.16666655242443085f, 0.008332177996635437f, -0.0001951729936990887f), t);
  const F cosine = polynomial(t2, t4, 1.0f, -0.4999985694885254f, 0.041655026376247406f, -0.0013585909036919475f);
  const auto straight = (turned & 0x40000000u) == 0u;
  const F first = r * select(straight, cosine, sine), second = r * select(straight, sine, cosine);

  // Signs by xor: a conditional negation is a branch to a vectoriser.
  return {bit_cast<F>(bit_cast<u32_of<F>>(first) ^ ((turned + 0x40000000u) & 0x80000000u)),
          bit_cast<F>(bit_cast<u32_of<F>>(second) ^ (turned & 0x80000000u))};
}

VAE_FAST_NAMESPACE_END
