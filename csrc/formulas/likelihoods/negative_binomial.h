// A negative binomial count, of a mean and an inverse dispersion.
#pragma once

#include "poisson.h"

VAE_FAST_NAMESPACE_BEGIN

// p(x) = Γ(x + theta) / (Γ(theta)·x!)·(theta / (theta + mean))^theta·(mean / (theta + mean))^x
struct NegativeBinomial : OfCounts<NegativeBinomial> {
  static constexpr int parameters = 2;

  // u = (x - mean) / (theta + mean), whose 1 + u is (theta + x) / (theta + mean).
  template <class F> struct Terms {
    F mean, theta, x, total, inverse;
    Log1p<F> log;  // of u
  };
  template <class F> static VAE_FAST_FN Terms<F> terms(F mean, F theta, F x) {
    const F total = theta + mean, inverse = divide(splat<F>(1.0f), total);
    return {mean, theta, x, total, inverse, log1p((x - mean) * inverse, (theta + x) * inverse)};
  }

  // The same of mean, theta and x in units of `unit`, in which no product leaves float32 either; infinite ones as the
  // largest number.
  template <class F> struct CarefulTerms : Terms<F> { F unit; };
  template <class F> static VAE_FAST_FN CarefulTerms<F> careful_terms(F mean, F theta, F x) {
    mean = bounded_domain(mean), theta = bounded_domain(theta), x = bounded_domain(x);
    const auto large = mean + theta + x > splat<F>(0x1p62f);
    const F scale = select(large, splat<F>(0x1p-66f), splat<F>(1.0f));
    Terms<F> t = terms(mean * scale, theta * scale, x * scale);
    const auto extreme = is_extreme((t.theta + t.x) * t.inverse);
    t.log.value = select(extreme, log(t.theta + t.x) - log(t.total), t.log.value);
    t.log.minus = select(extreme, t.log.value - (t.x - t.mean) * t.inverse, t.log.minus);
    return {t, select(large, splat<F>(0x1p66f), splat<F>(1.0f))};
  }

  template <class F> static VAE_FAST_FN F nll_of_zero(const F* p) {
    const F mean = p[0] + splat<F>(kTiny), theta = p[1] + splat<F>(kTiny);
    if (!are_ordinary(mean, theta)) return zero_careful(mean, theta);
    const auto t = terms(mean, theta, splat<F>(0.0f));
    return -(t.theta * t.log.value);
  }
  template <class F> static VAE_FAST_COLD F zero_careful(F mean, F theta) {
    const auto t = careful_terms(mean, theta, splat<F>(0.0f));
    // -theta·log(1 + u), where u may leave float32: from -theta·u
    const F nll = fma(-t.theta, t.log.minus, (t.theta * t.mean) * t.inverse) * t.unit;
    return select(is_infinite(theta), not_negative(mean), nll + growth_of_infinite(mean, splat<F>(0.0f)));
  }

  // x·log(x / mean) - (theta + x)·log((theta + x) / total): as a difference of deviances, exact where x is near the mean,
  // or with what is large cancelled, x·log(1 + theta·(x - mean) / (mean·(theta + x))) - theta·log(1 + u).
  template <bool kCareful, class F> static VAE_FAST_FN F deviance(const Terms<F>& t) {
    const F apart = t.x - t.mean, sum = t.theta + t.x;
    const auto far = absolute(apart) > t.theta;
    const F scale = divide(splat<F>(1.0f), select(far, t.mean * sum, t.mean));
    const F ratio = select(far, t.x * t.total, t.x) * scale;
    Log1p<F> log_x = log1p(select(far, t.theta * apart, apart) * scale, ratio);
    F near_mean = t.mean * log_x.deviance;
    if constexpr (kCareful) {
      const F logs = log(t.x) - log(t.mean);
      log_x.value = select(is_extreme(ratio), logs + (log(t.total) - log(sum)), log_x.value);
      near_mean = select(is_extreme(ratio), t.x * logs - apart, near_mean);
    }
    return select(far, t.x * log_x.value - t.theta * t.log.value, near_mean - t.total * t.log.deviance);
  }
  template <class F> static VAE_FAST_FN F nll_of_count(const F* p, F x) {
    const F mean = p[0] + splat<F>(kTiny), theta = p[1] + splat<F>(kTiny);
    if (!are_ordinary(mean, theta, x)) return count_careful(mean, theta, x);
    const auto t = terms(mean, theta, x);
    // log x! and what is left of the gamma functions of theta
    const F sum = theta + x, growth = divide(sum, theta), of_theta = stirling(theta) - stirling(sum);
    F rest = fma(splat<F>(0.5f), log(splat<F>(2.0f * kPi) * (x * growth)), stirling_series(x) + of_theta);
    const auto fraction = x < splat<F>(1.0f);
    if (any<F>(fraction)) {
      const F half_log = splat<F>(0.5f) * log1p(divide(x, theta), growth).value;
      rest = select(fraction, log_factorial_minus(x) + (half_log + of_theta), rest);
    }
    return deviance<false>(t) + rest;
  }
  template <class F> static VAE_FAST_COLD F count_careful(F mean, F theta, F x) {
    const auto t = careful_terms(mean, theta, x);
    const F sum = t.theta + t.x, count = t.x * t.unit;
    const auto fraction = count < splat<F>(1.0f);
    const F of_factorial = select(fraction, log_factorial_minus(select(fraction, count, splat<F>(0.5f))),
                                  splat<F>(0.5f) * (log(count) + splat<F>(kLog2Pi)) + stirling_series(count));
    const F half_log = splat<F>(0.5f) * select(t.x > t.theta, log(sum) - log(t.theta), log1p(divide(t.x, t.theta), divide(sum, t.theta)).value);
    const F rest = of_factorial + (half_log + (stirling(t.theta * t.unit) - stirling(sum * t.unit)));
    const F nll = fma(deviance<true, F>(t), t.unit, rest) + growth_of_infinite(mean, x);
    return select(is_infinite(theta), Poisson::nll_careful(mean, x), nll);  // the limit
  }

  template <class F> static VAE_FAST_FN bool is_common(const F* p, F x) {
    return is_common_count(CommonCount<F>(x).at_least_1, p[0] + splat<F>(kTiny), p[1] + splat<F>(kTiny));
  }
  template <class F> static VAE_FAST_FN F nll_common(const F* p, F x) {
    const CommonCount<F> count(x);
    const F one = splat<F>(1.0f), none = splat<F>(0.0f), mean = p[0] + splat<F>(kTiny), theta = p[1] + splat<F>(kTiny);
    const F at_least_1 = count.at_least_1, apart = count.value - mean, total = theta + mean, sum = theta + count.value;
    const auto far = !count.counted | (absolute(apart) > theta);

    // x·log(x / mean) - (theta + x)·log((theta + x) / total): where both are near 0, what is of first order cancels to
    // 2·theta·w·w; else as in deviance(). Of a zero it is -theta·log(theta / total).
    const LogRatio<F> log_u = log_ratio(sum, total, apart);
    const LogRatio<F> log_x = log_ratio(select(far, at_least_1 * total, at_least_1), select(far, mean * (theta + at_least_1), mean),
                                        select(far, theta * (at_least_1 - mean), apart));
    const auto near = !far & log_u.is_near() & log_x.is_near();
    const F first_order = (theta + theta) * (log_u.w * log_x.w);
    const F of_u = select(near, log_u.cubic, log_u.value()) * select(far, theta, sum);
    const F deviance = select(near, first_order, none) + fma(count.value, select(near, log_x.cubic, log_x.value()), -of_u);

    // A small theta is raised by 1 for Stirling's series: Γ(theta + 1) = theta·Γ(theta).
    // (Below 2/3, not 1, so that add_log's error counts less.)
    const auto small = theta < splat<F>(2.0f / 3.0f);
    const F raised = theta + one, per_theta = reciprocal(theta), step = raised * per_theta;
    const F of_theta = stirling_wide(select(small, reciprocal_of_small_term(raised), per_theta));
    const F of_step = select(small, add_log(theta, step, -one), none);
    const F of_sum = stirling_of_inverse(reciprocal_of_small_term(sum)), ratio = sum * per_theta * select(small, step, one);
    return select(count.counted, deviance + log_factorial_rest(at_least_1, ratio, (of_theta - of_sum) + of_step), deviance);
  }

  template <class F> static VAE_FAST_FN void gradient_of_zero(const F* p, F* by) {
    const F mean = p[0] + splat<F>(kTiny), theta = p[1] + splat<F>(kTiny);
    if (!are_ordinary(mean, theta)) return gradient_careful(mean, theta, splat<F>(0.0f), by);
    const auto t = terms(mean, theta, splat<F>(0.0f));
    by[0] = t.theta * t.inverse;
    by[1] = -t.log.minus;
  }
  template <class F> static VAE_FAST_FN void gradient_of_count(const F* p, F x, F* by) {
    const F mean = p[0] + splat<F>(kTiny), theta = p[1] + splat<F>(kTiny);
    if (!are_ordinary(mean, theta, x)) return gradient_careful(mean, theta, x, by);
    const auto t = terms(mean, theta, x);
    by[0] = divide((mean - x) * theta * t.inverse, mean);
    by[1] = -(t.log.minus + digamma_minus_log_difference(theta + x, theta, x));
  }
  template <class F> static VAE_FAST_COLD void gradient_careful(F mean, F theta, F x, F* by) {
    const auto t = careful_terms(mean, theta, x);
    const auto poisson = is_infinite(theta);
    const F none = splat<F>(0.0f), apart = t.mean - t.x, at = t.theta * t.unit, count = t.x * t.unit;
    const F slope = divide(select(poisson, apart, (apart * t.theta) * t.inverse), t.mean);
    const F limit = fma(t.theta + t.x, none, select(poisson, splat<F>(1.0f), none));  // of an infinite mean
    by[0] = select(is_infinite(mean), limit, slope) - select(is_infinite(x), growth_of_infinite(mean, x), none);
    const F by_theta = -(t.log.minus + select(count > none, digamma_minus_log_difference<true>(at + count, at, count), none));
    by[1] = select(poisson, fma(t.mean, none, t.x * none), by_theta + growth_of_infinite(mean, x));
  }
};

VAE_FAST_NAMESPACE_END
