// The discretized logistic: the mass that a logistic distribution puts on one of 256 levels, as in PixelCNN++ (Salimans
// et al., 2017), NVAE and VDVAE. Element by element as a member of the op `likelihood`; a part of mixture.h.
#pragma once

#include "special.h"

VAE_FAST_NAMESPACE_BEGIN

constexpr float kMinLogScale = -7.0f;

// A level t = 2x - 1 in [-1, 1] reaches from t - 1/255 to t + 1/255; the first and the last one reach to infinity:
// p = σ(b) - σ(a) = σ(b)·σ(-a)·(1 - exp(-(b - a))), exact however small it is.
template <class F> struct LogisticBin {
  typedef decltype(F{} < F{}) Mask;
  F inverse_scale, a, b, width, mass;  // width = b - a, mass = 1 - exp(-width)
  Mask first, last;

  VAE_FAST_FN LogisticBin(F t, F mean, F log_scale) {
    const F half = splat<F>(1.0f / 255.0f), centre = t - mean;
    inverse_scale = exp_saturated(-maximum(splat<F>(kMinLogScale), log_scale));
    a = inverse_scale * (centre - half);
    b = inverse_scale * (centre + half);
    width = inverse_scale * splat<F>(2.0f / 255.0f);
    mass = maximum(splat<F>(0x1p-126f), -expm1_nonpositive(-width));
    first = t < splat<F>(-0.999f);
    last = t > splat<F>(0.999f);
  }

  VAE_FAST_FN F nll() const {
    const F none = splat<F>(0.0f), above = select(last, none, softplus(-b)), below = select(first, none, softplus(a));
    return above + below - select(first | last, none, log(mass));
  }

  // The derivatives by mean and log_scale.
  VAE_FAST_FN void gradient(F log_scale, F& by_mean, F& by_log_scale) const {
    const F none = splat<F>(0.0f), above = select(last, none, sigmoid(b).complement);
    const F below = select(first, none, sigmoid(a).value);
    const F of_width = select(first | last, none, width * divide(splat<F>(1.0f) - mass, mass));
    by_mean = inverse_scale * (above - below);
    const F slope = fma(b, above, fma(-a, below, of_width));
    by_log_scale = select(log_scale < splat<F>(kMinLogScale), none, slope);
  }
};

// x in [0, 1] is one of 256 levels; p[0] = mean and p[1] = log-scale are of t = 2x - 1. Log-scales below -7 count as -7.
struct DiscretizedLogistic {
  static constexpr int parameters = 2;

  template <class F> static VAE_FAST_FN LogisticBin<F> bin(const F* p, F x) { return {x + x - splat<F>(1.0f), p[0], p[1]}; }
  template <class F> static VAE_FAST_FN F nll(const F* p, F x) { return bin(p, x).nll(); }
  template <class F> static VAE_FAST_FN void gradient(const F* p, F x, F* by) { bin(p, x).gradient(p[1], by[0], by[1]); }
};

VAE_FAST_NAMESPACE_END
