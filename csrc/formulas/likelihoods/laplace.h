// A Laplace variable.
#pragma once

#include "../../math/special.h"

VAE_FAST_NAMESPACE_BEGIN

// p(x) = exp(-|x - location| / exp s) / (2·exp s)
struct Laplace {
  static constexpr int parameters = 2;
  static constexpr bool is_light = true;
  static constexpr float far = 87.0f;  // beyond, 2^k leaves the exponent's range

  // |location - x|·exp(-s) and its derivative by the location.
  template <class F> struct Scaled { F distance, slope; };
  template <bool kNear, class F> static VAE_FAST_FN Scaled<F> scaled(const F* p, F x) {
    const F d = p[0] - x, none = splat<F>(0.0f), one = splat<F>(1.0f), distance = absolute(d);
    const F sign = select(d > none, one, select(d < none, -one, d));  // 0 and NaN pass
    const Reduced<F> e = reduce<-1>(p[1]);
    const F inverse = fma(power(e), e.p, power(e));
    const Scaled<F> near{distance * inverse, sign * inverse};
    const auto is_far = absolute(p[1]) > splat<F>(far);
    if (kNear || !any<F>(is_far)) return near;
    return {select(is_far, times_exp(distance, -p[1]), near.distance), select(is_far, times_exp(sign, -p[1]), near.slope)};
  }

  template <bool kNear = false, class F> static VAE_FAST_FN F nll(const F* p, F x) {
    return splat<F>(kLn2) + p[1] + scaled<kNear>(p, x).distance;
  }

  template <bool kNear = false, class F> static VAE_FAST_FN void gradient(const F* p, F x, F* by) {
    const Scaled<F> s = scaled<kNear>(p, x);
    by[0] = s.slope;
    by[1] = splat<F>(1.0f) - s.distance;
  }
};

VAE_FAST_NAMESPACE_END
