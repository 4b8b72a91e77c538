// Two random words to two independent standard normals (Box and Muller, 1958), within 4e-6 of the exact transform.
#pragma once

#include "math.h"

VAE_FAST_NAMESPACE_BEGIN

template <class F> struct NormalPair { F first, second; };

// u1 = (w0 + 1/2)·2^-32, u2 = w1·2^-32, r = sqrt(-2 ln u1);  first = r·cos(2π u2), second = r·sin(2π u2)
template <class F> VAE_FAST_FN NormalPair<F> box_muller(u32_of<F> w0, u32_of<F> w1) {
  // As a signed number w0 measures the distance to the nearer end of (0, 1), so u1 near 1 keeps all its digits:
  // u1 = y for w0 < 2^31, u1 = 1 + y with y < 0 above.
  const F y = (to_float<F>(bit_cast<i32_of<F>>(w0)) + splat<F>(0.5f)) * splat<F>(0x1p-32f);
  const F u1 = select(y < splat<F>(0.0f), y + splat<F>(1.0f), y);

  // u1 = 2^k·(1 + f) with 1/√2 <= 1 + f < √2; k = 0 only where u1 = 1 + y, and there f = y exactly.
  constexpr std::uint32_t sqrt_half = 0x3F3504F3u;
  const u32_of<F> from_sqrt_half = bit_cast<u32_of<F>>(u1) - sqrt_half;
  const F k = to_float<F>(bit_cast<i32_of<F>>(from_sqrt_half) >> 23);
  const F mantissa = bit_cast<F>((from_sqrt_half & 0x007FFFFFu) + sqrt_half);
  const F f = select(k == splat<F>(0.0f), y, mantissa - splat<F>(1.0f));
  const F minus_log = fma(k, splat<F>(-kLn2), -log1p_reduced(f));
  const F r = sqrt(minus_log + minus_log);

  // The angle, reduced exactly in integers: 2π u2 = quadrant·π/2 + t with |t| <= π/4.
  const u32_of<F> turned = w1 + 0x20000000u;
  const F t = to_float<F>(bit_cast<i32_of<F>>((turned & 0x3FFFFFFFu) - 0x20000000u)) * splat<F>(1.46291807926715968e-9f);
  const F t2 = t * t;
  const F sine = fma(t * t2, horner(t2, -0.16666655242443085f, 0.008332177996635437f, -0.0001951729936990887f), t);
  const F cosine = fma(t2 * t2, horner(t2, 0.04166664555668831f, -0.001388736767694354f, 2.4438451873720624e-05f),
                       fma(t2, splat<F>(-0.5f), splat<F>(1.0f)));
  const auto swap = (turned & 0x40000000u) != 0u;
  const F first = r * select(swap, sine, cosine), second = r * select(swap, cosine, sine);

  // Signs by xor: a conditional negation is a branch to a vectoriser.
  return {bit_cast<F>(bit_cast<u32_of<F>>(first) ^ ((turned + 0x40000000u) & 0x80000000u)),
          bit_cast<F>(bit_cast<u32_of<F>>(second) ^ (turned & 0x80000000u))};
}

VAE_FAST_NAMESPACE_END
