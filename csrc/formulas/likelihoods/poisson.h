// A Poisson count.
#pragma once

#include "counts.h"

VAE_FAST_NAMESPACE_BEGIN

// p(x) = mean^x·exp(-mean) / x!
struct Poisson : OfCounts<Poisson> {
  static constexpr int parameters = 1;

  template <class F> static VAE_FAST_FN F nll_of_zero(const F* p) { return not_negative(p[0] + splat<F>(kTiny)); }
  template <class F> static VAE_FAST_FN F nll_of_count(const F* p, F x) {
    const F mean = p[0] + splat<F>(kTiny);
    if (!are_ordinary(mean, x)) return nll_careful(mean, x);
    return fma(mean, log1p(divide(x - mean, mean), divide(x, mean)).deviance, log_factorial_minus(x));
  }
  template <class F> static VAE_FAST_COLD F nll_careful(F mean_or_not, F x_or_not) {
    const F mean = bounded_domain(mean_or_not), x = bounded_domain(x_or_not), apart = x - mean, ratio = divide(x, mean);
    const F near = mean * log1p(divide(apart, mean), ratio).deviance, far = x * (log(x) - log(mean)) - apart;
    const auto large = x > splat<F>(0x1p62f);
    const F of_large = splat<F>(0.5f) * (log(x) + splat<F>(kLog2Pi));
    return select(is_extreme(ratio), far, near) +
           select(large, of_large, log_factorial_minus(select(large, splat<F>(1.0f), x))) +
           growth_of_infinite(mean_or_not, x_or_not);
  }

  template <class F> static VAE_FAST_FN bool is_common(const F* p, F x) {
    return is_common_count(CommonCount<F>(x).at_least_1, p[0] + splat<F>(kTiny));
  }
  template <class F> static VAE_FAST_FN F nll_common(const F* p, F x) {
    const CommonCount<F> count(x);
    const F mean = p[0] + splat<F>(kTiny), at_least_1 = count.at_least_1, apart = at_least_1 - mean;
    const LogRatio<F> log_x = log_ratio(at_least_1, mean, apart);
    const auto near = log_x.is_near();  // what is of first order cancels to w·(x - mean)
    const F deviance = fma(at_least_1, select(near, log_x.cubic, log_x.value()), select(near, apart * log_x.w, -apart));
    return select(count.counted, deviance + log_factorial_rest(at_least_1, splat<F>(1.0f), splat<F>(0.0f)), mean);
  }

  template <class F> static VAE_FAST_FN void gradient_of_zero(const F* p, F* by) {
    by[0] = select(p[0] + splat<F>(kTiny) >= splat<F>(0.0f), splat<F>(1.0f), splat<F>(kNaN));
  }
  template <class F> static VAE_FAST_FN void gradient_of_count(const F* p, F x, F* by) {
    const F mean = p[0] + splat<F>(kTiny), bounded = bounded_domain(mean), count = not_negative(x);
    by[0] = select(is_infinite(mean), splat<F>(1.0f) + (count - count), divide(bounded - count, bounded));
  }
};

VAE_FAST_NAMESPACE_END
