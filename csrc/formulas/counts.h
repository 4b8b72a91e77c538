// Members of the op `likelihood` for counts x >= 0, as scvi-tools parametrises them: mean and inverse dispersion theta.
//
// The textbook forms subtract log Γ(x + theta) - log Γ(theta), which cancels: at theta = 1e8 float32 is left with no digit.
// Here Stirling's series is subtracted by hand (Loader, "Fast and accurate computation of binomial probabilities", 2000),
// so that only small terms are left: (1 + t)·log(1 + t) - t, and Stirling's errors.
#pragma once

#include "../math/special.h"

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

// Most counts are zeros, and a zero's likelihood is simple. A member says what it is for zeros and for the others (NaN is
// one of them); here that becomes the likelihood of any count. The CPU's loops sort the zeros out beforehand.
template <class Member> struct OfCounts {
  template <class F> static VAE_FAST_FN F nll(const F* p, F x) {
    const auto counted = is_counted(x);
    const F of_zero = Member::nll_of_zero(p);
    if (!any<F>(counted)) return of_zero;
    // Where there is a zero 1 stands in, so that no lane asks for a fraction's logarithms.
    return select(counted, Member::nll_of_count(p, select(counted, x, splat<F>(1.0f))), of_zero);
  }

  template <class F> static VAE_FAST_FN void gradient(const F* p, F x, F* by) {
    const auto counted = is_counted(x);
    Member::gradient_of_zero(p, by);
    if (!any<F>(counted)) return;
    F of_count[Member::parameters];
    Member::gradient_of_count(p, select(counted, x, splat<F>(1.0f)), of_count);
    for (int i = 0; i < Member::parameters; ++i) by[i] = select(counted, of_count[i], by[i]);
  }
};

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

  template <class F> static VAE_FAST_FN void gradient_of_zero(const F* p, F* by) {
    by[0] = select(p[0] + splat<F>(kTiny) >= splat<F>(0.0f), splat<F>(1.0f), splat<F>(kNaN));
  }
  template <class F> static VAE_FAST_FN void gradient_of_count(const F* p, F x, F* by) {
    const F mean = p[0] + splat<F>(kTiny), bounded = bounded_domain(mean), count = not_negative(x);
    by[0] = select(is_infinite(mean), splat<F>(1.0f) + (count - count), divide(bounded - count, bounded));
  }
};

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

// A zero with probability σ(p[2]), else the negative binomial.
struct ZeroInflatedNegativeBinomial : OfCounts<ZeroInflatedNegativeBinomial> {
  static constexpr int parameters = 3;

  // -log(σ(d) + σ(-d)·exp(-zero)): of what is near 1 from its distance to 1, of what is far from float32's range with
  // nothing large subtracted.
  template <class F> static VAE_FAST_FN F nll_of_zero(const F* p) {
    const F zero = NegativeBinomial::nll_of_zero(p);
    const Sigmoid<F> dropped = sigmoid(p[2]);
    const Nonpositive<F> of_zero = nonpositive(-zero);
    const F probability = fma(dropped.complement, of_zero.exp, dropped.value);
    const F near = -log1p(dropped.complement * of_zero.expm1, probability).value;
    const auto small = probability < splat<F>(0x1p-40f);
    if (!any<F>(small)) return near;
    const F kept = -p[2], larger = maximum(splat<F>(0.0f), kept);
    return select(small, minimum(zero, larger) + (softplus_tail(kept) - softplus_tail(kept - zero)), near);
  }
  template <class F> static VAE_FAST_FN F nll_of_count(const F* p, F x) {
    return softplus(p[2]) + NegativeBinomial::nll_of_count(p, x);
  }

  template <class F> static VAE_FAST_FN void gradient_of_zero(const F* p, F* by) {
    const F zero = NegativeBinomial::nll_of_zero(p);
    NegativeBinomial::gradient_of_zero(p, by);
    const Sigmoid<F> kept = sigmoid(-p[2] - zero);  // the chance that a zero is one of the negative binomial's
    by[0] = kept.value * by[0];
    by[1] = kept.value * select(is_infinite(zero), splat<F>(0.0f), by[1]);
    by[2] = sigmoid(p[2]).complement * kept.complement * nonpositive(-zero).expm1;
  }
  template <class F> static VAE_FAST_FN void gradient_of_count(const F* p, F x, F* by) {
    NegativeBinomial::gradient_of_count(p, x, by);
    by[2] = sigmoid(p[2]).value;
    // As the value is NaN where one of them is.
    const F undefined = select((by[0] != by[0]) | (p[2] != p[2]), splat<F>(kNaN), splat<F>(0.0f));
    for (int i = 0; i < parameters; ++i) by[i] = by[i] + undefined;
  }
};

VAE_FAST_NAMESPACE_END
