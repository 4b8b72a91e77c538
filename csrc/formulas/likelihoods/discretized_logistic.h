// The discretized logistic: the mass that a logistic distribution puts on one of 256 levels, as in PixelCNN++ (Salimans
// et al., 2017), NVAE and VDVAE. Element by element in the op `likelihood`; a part of mixture.h.
#pragma once

#include "../../math/special.h"

VAE_FAST_NAMESPACE_BEGIN

constexpr float kMinLogScale = -7.0f;

constexpr float kMaxLogScale = 10.0f;  // beyond, a level is so narrow that its mass is its width times the density

// A level t = 2x - 1 in [-1, 1] reaches from t - 1/255 to t + 1/255; the first and the last one reach to infinity:
// p = σ(b) - σ(a) = σ(b)·σ(-a)·(1 - exp(-(b - a))), exact however small it is.
template <class F> struct LogisticBin {
  typedef decltype(F{} < F{}) Mask;
  F centre, log_scale, inverse_scale, a, b, width, mass;  // width = b - a, mass = 1 - exp(-width)
  Mask first, last, narrow;

  VAE_FAST_FN LogisticBin(F t, F mean, F s) {
    const F half = splat<F>(1.0f / 255.0f);
    centre = t - mean;
    log_scale = maximum(splat<F>(kMinLogScale), s);
    const Factors<F> inverse = exp_factors_below(-log_scale);  // of what may be large
    first = t < splat<F>(-0.999f);
    last = t > splat<F>(0.999f);
    a = select(first, splat<F>(-kFar), inverse.times(centre - half));
    b = select(last, splat<F>(kFar), inverse.times(centre + half));
    inverse_scale = inverse.first * inverse.second;
    width = inverse_scale * splat<F>(2.0f / 255.0f);
    mass = -expm1_nonpositive(-width);
    narrow = log_scale > splat<F>(kMaxLogScale);
  }

  VAE_FAST_FN F nll() const {
    const F log_mass = select(narrow, splat<F>(kLogLevel) - log_scale, log(mass));
    return softplus(-b) + softplus(a) - select(first | last, splat<F>(0.0f), log_mass);
  }

  // The derivatives by mean and log_scale.
  VAE_FAST_FN void gradient(F s, F& by_mean, F& by_log_scale) const {
    const F none = splat<F>(0.0f), one = splat<F>(1.0f), above = sigmoid(b).complement, below = sigmoid(a).value;
    const F of_width = select(narrow, fma(splat<F>(-0.5f), width, one), width * divide(one - mass, mass));
    by_mean = inverse_scale * (above - below);
    // An edge that overflowed on the side where its sigmoid is 0: their product is 0, though not of an infinite mean.
    const F upper = minimum(splat<F>(kFar), b), lower = maximum(splat<F>(-kFar), a);
    const F wild = fma(none, centre, none * log_scale);  // 0 or NaN
    const F slope = fma(upper, above, fma(-lower, below, select(first | last, none, of_width) + wild));
    by_log_scale = select(s < splat<F>(kMinLogScale), none, slope);
  }

 private:
  static constexpr float kLogLevel = -4.848116364598481f, kFar = 0x1p100f;  // log(2/255)
};

// x in [0, 1] is one of 256 levels; p[0] = mean and p[1] = log-scale are of t = 2x - 1. Log-scales below -7 count as -7.
struct DiscretizedLogistic {
  static constexpr int parameters = 2;

  template <class F> static VAE_FAST_FN LogisticBin<F> bin(const F* p, F x) { return {x + x - splat<F>(1.0f), p[0], p[1]}; }
  template <class F> static VAE_FAST_FN F nll(const F* p, F x) { return bin(p, x).nll(); }
  template <class F> static VAE_FAST_FN void gradient(const F* p, F x, F* by) { bin(p, x).gradient(p[1], by[0], by[1]); }
};

VAE_FAST_NAMESPACE_END
