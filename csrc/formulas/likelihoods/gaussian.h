// A normal variable, of any variance or of 1.
#pragma once

#include "../../math/special.h"

VAE_FAST_NAMESPACE_BEGIN

// p(x) = N(x; mean, exp logvar)
struct Gaussian {
  static constexpr int parameters = 2;
  static constexpr bool is_light = true;
  static constexpr float far = kFarLogvar;

  template <bool kNear = false, class F> static VAE_FAST_FN F nll(const F* p, F x) {
    const ScaledSquare<F> s = scaled_square<kNear>(p[0] - x, p[1]);
    return fma(s.half, s.root, fma(splat<F>(0.5f), p[1], splat<F>(0.5f * kLog2Pi)));
  }

  template <bool kNear = false, class F> static VAE_FAST_FN void gradient(const F* p, F x, F* by) {
    const ScaledSquare<F> s = scaled_square<kNear>(p[0] - x, p[1]);
    by[0] = s.slope;
    by[1] = fma(-s.half, s.root, splat<F>(0.5f));
  }
};

// p(x) = N(x; mean, 1): nothing to load but the mean, and no exponential.
struct UnitGaussian {
  static constexpr int parameters = 1;
  static constexpr bool is_light = true;

  template <class F> static VAE_FAST_FN F nll(const F* p, F x) {
    const F d = p[0] - x;
    return fma(splat<F>(0.5f) * d, d, splat<F>(0.5f * kLog2Pi));
  }

  template <class F> static VAE_FAST_FN void gradient(const F* p, F x, F* by) { by[0] = p[0] - x; }
};

VAE_FAST_NAMESPACE_END
