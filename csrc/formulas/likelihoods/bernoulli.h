// A Bernoulli variable, from its logit or its probability.
#pragma once

#include "../../math/special.h"

VAE_FAST_NAMESPACE_BEGIN

// p(x) = σ(l)^x (1 - σ(l))^(1-x), from the logit l.
struct Bernoulli {
  static constexpr int parameters = 1;
  static constexpr bool is_light = true;

  // max(l, 0) - x·l, without a fused multiply too.
  template <class F> static VAE_FAST_FN F linear(F l, F x) {
    return absolute(l) * select(l < splat<F>(0.0f), x, splat<F>(1.0f) - x);
  }

  // The linear part + log(1 + exp(-|l|)): no exp that overflows, no log of 0.
  template <class F> static VAE_FAST_FN F nll(const F* p, F x) {
    return linear(p[0], x) + log1p_unit(exp_nonpositive(-absolute(p[0])));
  }

  // σ(l) - x as (1-x)·σ(l) - x·σ(-l): exact in both tails, where σ(l) rounds to 1. One division serves both.
  template <class F> static VAE_FAST_FN void gradient(const F* p, F x, F* by) {
    const F l = p[0], one = splat<F>(1.0f), e = exp_nonpositive(-absolute(l));
    const auto negative = l < splat<F>(0.0f);
    const F success = select(negative, e, one), failure = select(negative, one, e);
    by[0] = divide(fma(one - x, success, -(x * failure)), one + e);
  }
};

// p(x) = p^x (1 - p)^(1-x), from the probability p, as torch's binary_cross_entropy: logs held at -100 or above, and
// p(1 - p) in the derivative at 1e-12 or above. NaN where p or x is no probability.
struct BernoulliProbs {
  static constexpr int parameters = 1;

  template <class F> static VAE_FAST_FN F checked(F p, F x, F value) {
    const F none = splat<F>(0.0f), one = splat<F>(1.0f);
    return select((p >= none) & (p <= one) & (x >= none) & (x <= one), value, splat<F>(kNaN));
  }

  template <class F> static VAE_FAST_FN F nll(const F* parameter, F x) {
    const F p = parameter[0], size = absolute(p), one = splat<F>(1.0f), least = splat<F>(-100.0f), q = one - p;
    const auto subnormal = size < splat<F>(0x1p-126f);
    const F log_scaled = log(select(subnormal, size * splat<F>(0x1p64f), size));
    const F log_p = maximum(least, select(subnormal, log_scaled - splat<F>(64.0f * kLn2), log_scaled));
    const F log_q = select(q == splat<F>(0.0f), least, log1p(-p, q).value);
    return checked(p, x, -fma(x, log_p, (one - x) * log_q));
  }

  template <class F> static VAE_FAST_FN void gradient(const F* parameter, F x, F* by) {
    const F p = parameter[0], variance = maximum(splat<F>(1e-12f), p * (splat<F>(1.0f) - p));
    by[0] = checked(p, x, divide(p - x, variance));
  }
};

VAE_FAST_NAMESPACE_END
