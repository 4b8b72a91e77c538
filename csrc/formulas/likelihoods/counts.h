// What the likelihoods of counts x >= 0 share, as scvi-tools parametrises them: mean and inverse dispersion theta.
//
// The textbook forms subtract log Γ(x + theta) - log Γ(theta), which cancels: at theta = 1e8 float32 is left with no digit.
// Here Stirling's series is subtracted by hand (Loader, "Fast and accurate computation of binomial probabilities", 2000),
// so that only small terms are left: (1 + t)·log(1 + t) - t, and Stirling's errors.
#pragma once

#include "../../math/special.h"

VAE_FAST_NAMESPACE_BEGIN

constexpr float kTiny = 1e-8f;     // added to means and thetas, as in scvi-tools: a mean of 0 has a finite gradient
constexpr float kNothing = 1e-8f;  // a count closer to 0 than this is none

// Whether x counts anything; NaN does.
template <class F> VAE_FAST_FN auto is_counted(F x) {
  return bit_cast<i32_of<F>>(absolute(x)) > bit_cast<std::int32_t>(kNothing) - 1;
}

// Ordinary numbers are not negative, and at most 2^62 together, so that no product or quotient of two leaves float32.
// A vector of others takes the functions named _careful: NaN for what is negative, the limit where a number is infinite.
template <class F, class... Others> VAE_FAST_FN bool are_ordinary(F first, Others... others) {
  const F room = splat<F>(0x1p62f) - (first + ... + others);
  return !any_negative<F>((bit_cast<u32_of<F>>(first) | ... | bit_cast<u32_of<F>>(others)) | bit_cast<u32_of<F>>(room));
}
template <class F> VAE_FAST_FN F not_negative(F x) { return select(x >= splat<F>(0.0f), x, splat<F>(kNaN)); }
template <class F> VAE_FAST_FN F bounded_domain(F x) { return minimum(splat<F>(kLargest), not_negative(x)); }
template <class F> VAE_FAST_FN auto is_infinite(F x) { return x > splat<F>(kLargest); }
// What is added to a result that grows without bound with the mean and with x, and has no limit in both.
template <class F> VAE_FAST_FN F growth_of_infinite(F mean, F x) {
  const F of_mean = select(is_infinite(mean), splat<F>(kInfinity), splat<F>(0.0f));
  return select(is_infinite(x), splat<F>(kInfinity) - of_mean, of_mean);
}

// Ratios whose logarithm is better taken of each number, as the ratio itself may leave float32.
template <class F> VAE_FAST_FN auto is_extreme(F ratio) { return (ratio < splat<F>(0x1p-60f)) | (ratio > splat<F>(0x1p60f)); }

// A GPU's warp holds zeros and other counts, and takes both ways of a branch: nll_common(), where a likelihood has it, is
// one formula for both. It is for whole numbers, and others from 1 on, with ordinary parameters; is_common() says so.
template <class F> struct CommonCount {
  typedef decltype(F{} < F{}) Mask;
  Mask counted;
  F value, at_least_1;
  VAE_FAST_FN explicit CommonCount(F x)
      : counted(is_counted(x)), value(select(counted, x, splat<F>(0.0f))), at_least_1(select(counted, x, splat<F>(1.0f))) {}
};
// Not where one of them is NaN, which log_ratio does not pass on.
template <class F, class... Parameters> VAE_FAST_FN bool is_common_count(F at_least_1, Parameters... parameters) {
  const F none = splat<F>(0.0f);
  return ((at_least_1 >= splat<F>(1.0f)) & ... & (parameters >= none)) & ((at_least_1 + ... + parameters) <= splat<F>(0x1p62f));
}
// log x! - x·log x + x, of x >= 1 and times a ratio that is wanted below the root of 2πx; `series` more of Stirling's errors.
template <class F> VAE_FAST_FN F log_factorial_rest(F x, F ratio, F series) {
  const F of_x = stirling_of_inverse(reciprocal_of_small_term(x));
  return add_log(splat<F>(0.5f), splat<F>(2.0f * kPi) * x * ratio, of_x + series);
}

// Most counts are zeros, and a zero's likelihood is simple. A likelihood says what it is for zeros and for the others (NaN is
// one of them); here that becomes the likelihood of any count. The CPU's loops sort the zeros out beforehand.
template <class Likelihood> struct OfCounts {
  template <class F> static VAE_FAST_FN F nll(const F* p, F x) {
    const auto counted = is_counted(x);
    const F of_zero = Likelihood::nll_of_zero(p);
    if (!any<F>(counted)) return of_zero;
    // Where there is a zero 1 stands in, so that no lane asks for a fraction's logarithms.
    return select(counted, Likelihood::nll_of_count(p, select(counted, x, splat<F>(1.0f))), of_zero);
  }

  template <class F> static VAE_FAST_FN void gradient(const F* p, F x, F* by) {
    const auto counted = is_counted(x);
    Likelihood::gradient_of_zero(p, by);
    if (!any<F>(counted)) return;
    F of_count[Likelihood::parameters];
    Likelihood::gradient_of_count(p, select(counted, x, splat<F>(1.0f)), of_count);
    for (int i = 0; i < Likelihood::parameters; ++i) by[i] = select(counted, of_count[i], by[i]);
  }
};

VAE_FAST_NAMESPACE_END
