// Members of the op `likelihood` for counts x >= 0, as scvi-tools parametrises them: mean and inverse dispersion theta.
//
// The textbook forms subtract log Γ(x + theta) - log Γ(theta), which cancels: at theta = 1e8 float32 is left with no digit.
// Here Stirling's series is subtracted by hand (Loader, "Fast and accurate computation of binomial probabilities", 2000),
// so that only small terms are left: (1 + t)·log(1 + t) - t, and Stirling's errors.
#pragma once

#include "special.h"

VAE_FAST_NAMESPACE_BEGIN

constexpr float kTiny = 1e-8f;  // added to means and thetas, as in scvi-tools: a mean of 0 has a finite gradient

// p(x) = mean^x·exp(-mean) / x!
struct Poisson {
  static constexpr int parameters = 1;

  template <class F> static VAE_FAST_FN F nll(const F* p, F x) {
    const F mean = p[0] + splat<F>(kTiny);
    return fma(mean, log1p(divide(x - mean, mean), divide(x, mean)).deviance, log_factorial_minus(x));
  }

  template <class F> static VAE_FAST_FN void gradient(const F* p, F x, F* by) {
    const F mean = p[0] + splat<F>(kTiny);
    by[0] = divide(mean - x, mean);
  }
};

// p(x) = Γ(x + theta) / (Γ(theta)·x!)·(theta / (theta + mean))^theta·(mean / (theta + mean))^x
struct NegativeBinomial {
  static constexpr int parameters = 2;

  // What value and gradient share: u = (x - mean) / (theta + mean), whose 1 + u is (theta + x) / (theta + mean).
  template <class F> struct Terms {
    F mean, theta, total, inverse, u, ratio;
    Log1p<F> log;
  };
  template <class F> static VAE_FAST_FN Terms<F> terms(const F* p, F x) {
    const F mean = p[0] + splat<F>(kTiny), theta = p[1] + splat<F>(kTiny), total = theta + mean;
    const F inverse = divide(splat<F>(1.0f), total), u = (x - mean) * inverse, ratio = (theta + x) * inverse;
    return {mean, theta, total, inverse, u, ratio, log1p(u, ratio)};
  }

  template <class F> static VAE_FAST_FN F nll(const Terms<F>& t, F count) {
    const auto positive = count > splat<F>(0.0f);
    const F of_zero = -(t.theta * t.log.value);
    if (!any<F>(positive)) return of_zero;
    const F x = select(positive, count, splat<F>(1.0f));  // see log_factorial_minus
    // x·log(x / mean) - (theta + x)·log((theta + x) / total): as a difference of deviances, exact where x is near the mean,
    // or with what is large cancelled, x·log(1 + theta·(x - mean) / (mean·(theta + x))) - theta·log(1 + u).
    const F apart = x - t.mean, sum = t.theta + x;
    const auto far = absolute(apart) > t.theta;
    const F scale = divide(splat<F>(1.0f), select(far, t.mean * sum, t.mean));
    const Log1p<F> log_x =
        log1p(select(far, t.theta * apart, apart) * scale, select(far, x * t.total, x) * scale);
    const F near_mean = t.mean * log_x.deviance - t.total * t.log.deviance;
    const F deviance = select(far, x * log_x.value - t.theta * t.log.value, near_mean);
    // log x! and what is left of the gamma functions of theta
    const F half_log = splat<F>(0.5f) * log(splat<F>(2.0f * kPi) * (x * divide(sum, t.theta)));
    const F rest = half_log + (stirling(x) + (stirling(t.theta) - stirling(sum)));
    return select(positive, deviance + rest, of_zero);
  }
  template <class F> static VAE_FAST_FN F nll(const F* p, F x) { return nll(terms(p, x), x); }

  template <class F> static VAE_FAST_FN void gradient(const Terms<F>& t, F x, F* by) {
    by[0] = divide(t.mean - x, t.mean) * (t.theta * t.inverse);
    by[1] = -(t.log.minus + digamma_minus_log_difference(t.theta + x, t.theta, x));
  }
  template <class F> static VAE_FAST_FN void gradient(const F* p, F x, F* by) { gradient(terms(p, x), x, by); }
};

// A zero with probability σ(p[2]), else the negative binomial.
struct ZeroInflatedNegativeBinomial {
  static constexpr int parameters = 3;

  template <class F> static VAE_FAST_FN F nll(const F* p, F x) {
    const auto t = NegativeBinomial::terms(p, x);
    const auto positive = x > splat<F>(0.0f);
    // -log(σ(d) + σ(-d)·exp(-zero)), without subtracting what is large: softplus(-d) - softplus(-d - zero)
    const F none = splat<F>(0.0f), kept = -p[2], zero = -(t.theta * t.log.value), both = kept - zero;
    const F tail = softplus_tail(kept), larger = maximum(none, kept);
    const F of_zero = minimum(zero, larger) + (tail - softplus_tail(both));
    if (!any<F>(positive)) return of_zero;
    return select(positive, (larger - kept) + tail + NegativeBinomial::nll(t, x), of_zero);
  }

  template <class F> static VAE_FAST_FN void gradient(const F* p, F x, F* by) {
    const auto t = NegativeBinomial::terms(p, x);
    const auto positive = x > splat<F>(0.0f);
    const Sigmoid<F> dropout = sigmoid(p[2]);
    // The chance that a zero is one of the negative binomial's.
    const F kept = sigmoid(fma(t.theta, t.log.value, -p[2])).value;
    by[0] = kept * (t.theta * t.inverse);
    by[1] = -(kept * t.log.minus);
    by[2] = select(positive, dropout.value, kept - dropout.complement);
    if (!any<F>(positive)) return;
    F full[2];
    NegativeBinomial::gradient(t, x, full);
    by[0] = select(positive, full[0], by[0]);
    by[1] = select(positive, full[1], by[1]);
  }
};

VAE_FAST_NAMESPACE_END
