// Members of the op `likelihood` for counts x >= 0, as scvi-tools parametrises them: mean and inverse dispersion theta.
//
// The textbook forms subtract log Γ(x + theta) - log Γ(theta), which cancels: at theta = 1e8 float32 is left with no digit.
// Here Stirling's series is subtracted by hand (Loader, "Fast and accurate computation of binomial probabilities", 2000),
// so that only small terms are left: (1 + t)·log(1 + t) - t, and Stirling's errors.
#pragma once

#include "special.h"

VAE_FAST_NAMESPACE_BEGIN

constexpr float kTiny = 1e-8f;  // added to means and thetas, as in scvi-tools: a mean of 0 has a finite gradient

// Most counts are zeros, and a zero's likelihood is simple. A member says what it is for zeros and for the others (NaN is
// one of them); here that becomes the likelihood of any count. The CPU's loops sort the zeros out beforehand.
template <class Member> struct OfCounts {
  template <class F> static VAE_FAST_FN F nll(const F* p, F x) {
    const auto counted = x != splat<F>(0.0f);
    const F of_zero = Member::nll_of_zero(p);
    if (!any<F>(counted)) return of_zero;
    // Where there is a zero 1 stands in, so that no lane asks for stirling's small numbers.
    return select(counted, Member::nll_of_count(p, select(counted, x, splat<F>(1.0f))), of_zero);
  }

  template <class F> static VAE_FAST_FN void gradient(const F* p, F x, F* by) {
    const auto counted = x != splat<F>(0.0f);
    Member::gradient_of_zero(p, by);
    if (!any<F>(counted)) return;
    F of_count[Member::parameters];
    Member::gradient_of_count(p, x, of_count);
    for (int i = 0; i < Member::parameters; ++i) by[i] = select(counted, of_count[i], by[i]);
  }
};

// p(x) = mean^x·exp(-mean) / x!
struct Poisson : OfCounts<Poisson> {
  static constexpr int parameters = 1;

  template <class F> static VAE_FAST_FN F nll_of_zero(const F* p) { return p[0] + splat<F>(kTiny); }
  template <class F> static VAE_FAST_FN F nll_of_count(const F* p, F x) {
    const F mean = p[0] + splat<F>(kTiny);
    return fma(mean, log1p(divide(x - mean, mean), divide(x, mean)).deviance, log_factorial_minus(x));
  }

  template <class F> static VAE_FAST_FN void gradient_of_zero(const F*, F* by) { by[0] = splat<F>(1.0f); }
  template <class F> static VAE_FAST_FN void gradient_of_count(const F* p, F x, F* by) {
    const F mean = p[0] + splat<F>(kTiny);
    by[0] = divide(mean - x, mean);
  }
};

// p(x) = Γ(x + theta) / (Γ(theta)·x!)·(theta / (theta + mean))^theta·(mean / (theta + mean))^x
struct NegativeBinomial : OfCounts<NegativeBinomial> {
  static constexpr int parameters = 2;

  // u = (x - mean) / (theta + mean), whose 1 + u is (theta + x) / (theta + mean).
  template <class F> struct Terms {
    F mean, theta, total, inverse;
    Log1p<F> log;  // of u
  };
  template <class F> static VAE_FAST_FN Terms<F> terms(const F* p, F x) {
    const F mean = p[0] + splat<F>(kTiny), theta = p[1] + splat<F>(kTiny), total = theta + mean;
    const F inverse = divide(splat<F>(1.0f), total);
    return {mean, theta, total, inverse, log1p((x - mean) * inverse, (theta + x) * inverse)};
  }

  template <class F> static VAE_FAST_FN F nll_of_zero(const F* p) {
    const auto t = terms(p, splat<F>(0.0f));
    return -(t.theta * t.log.value);
  }
  template <class F> static VAE_FAST_FN F nll_of_count(const F* p, F x) {
    const auto t = terms(p, x);
    // x·log(x / mean) - (theta + x)·log((theta + x) / total): as a difference of deviances, exact where x is near the mean,
    // or with what is large cancelled, x·log(1 + theta·(x - mean) / (mean·(theta + x))) - theta·log(1 + u).
    const F apart = x - t.mean, sum = t.theta + x;
    const auto far = absolute(apart) > t.theta;
    const F scale = divide(splat<F>(1.0f), select(far, t.mean * sum, t.mean));
    const Log1p<F> log_x = log1p(select(far, t.theta * apart, apart) * scale, select(far, x * t.total, x) * scale);
    const F near_mean = t.mean * log_x.deviance - t.total * t.log.deviance;
    const F deviance = select(far, x * log_x.value - t.theta * t.log.value, near_mean);
    // log x! and what is left of the gamma functions of theta
    const F half_log = splat<F>(0.5f) * log(splat<F>(2.0f * kPi) * (x * divide(sum, t.theta)));
    return deviance + (half_log + (stirling(x) + (stirling(t.theta) - stirling(sum))));
  }

  template <class F> static VAE_FAST_FN void gradient_of_zero(const F* p, F* by) {
    const auto t = terms(p, splat<F>(0.0f));
    by[0] = t.theta * t.inverse;
    by[1] = -t.log.minus;
  }
  template <class F> static VAE_FAST_FN void gradient_of_count(const F* p, F x, F* by) {
    const auto t = terms(p, x);
    by[0] = divide(t.mean - x, t.mean) * (t.theta * t.inverse);
    by[1] = -(t.log.minus + digamma_minus_log_difference(t.theta + x, t.theta, x));
  }
};

// A zero with probability σ(p[2]), else the negative binomial.
struct ZeroInflatedNegativeBinomial : OfCounts<ZeroInflatedNegativeBinomial> {
  static constexpr int parameters = 3;

  // -log(σ(d) + σ(-d)·exp(-zero)), without subtracting what is large: softplus(-d) - softplus(-d - zero)
  template <class F> static VAE_FAST_FN F nll_of_zero(const F* p) {
    const F kept = -p[2], zero = NegativeBinomial::nll_of_zero(p), larger = maximum(splat<F>(0.0f), kept);
    return minimum(zero, larger) + (softplus_tail(kept) - softplus_tail(kept - zero));
  }
  template <class F> static VAE_FAST_FN F nll_of_count(const F* p, F x) {
    return softplus(p[2]) + NegativeBinomial::nll_of_count(p, x);
  }

  template <class F> static VAE_FAST_FN void gradient_of_zero(const F* p, F* by) {
    const auto t = NegativeBinomial::terms(p, splat<F>(0.0f));
    // The chance that a zero is one of the negative binomial's.
    const F kept = sigmoid(fma(t.theta, t.log.value, -p[2])).value;
    by[0] = kept * (t.theta * t.inverse);
    by[1] = -(kept * t.log.minus);
    by[2] = kept - sigmoid(p[2]).complement;
  }
  template <class F> static VAE_FAST_FN void gradient_of_count(const F* p, F x, F* by) {
    NegativeBinomial::gradient_of_count(p, x, by);
    by[2] = sigmoid(p[2]).value;
  }
};

VAE_FAST_NAMESPACE_END
