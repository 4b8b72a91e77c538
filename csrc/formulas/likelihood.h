// The op `likelihood`, element by element: each likelihood is one struct with the negative log-likelihood of
// a target x under parameters p[0..parameters), and its derivatives by them. Adding one is adding a struct here and its
// line to csrc/api/likelihoods.def; the loops and grids around it do not know which one they run.
#pragma once

#include "counts.h"
#include "logistic.h"
#include "../math/special.h"

VAE_FAST_NAMESPACE_BEGIN

// p(x) = σ(l)^x (1 - σ(l))^(1-x), from the logit l.
struct Bernoulli {
  static constexpr int parameters = 1;

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

// The Bernoulli density on [0, 1] with the constant that makes it one: p(x) = C(l)·σ(l)^x (1 - σ(l))^(1-x),
// C = l / tanh(l/2). Loaiza-Ganem and Cunningham, "The continuous Bernoulli", 2019.
struct ContinuousBernoulli {
  static constexpr int parameters = 1;

  template <class F> static VAE_FAST_FN F nll(const F* p, F x) {
    const F l = p[0], a = absolute(l), one = splat<F>(1.0f), square = l * l;
    // log(sinh(l/2) / (l/2)) / l², where the other form cancels
    // fit_polynomials.py log_sinh: log(sinh(l/2)/(l/2))/l² of l², |l| <= 2; 4.4e-09 absolute
    const F series = polynomial(square, square * square, 0.0416666641831398f, -0.00034719437826424837f,
                                5.475809302879497e-06f, -8.846339483170595e-08f);
    const F near = fma(splat<F>(0.5f) - x, l, square * series);
    const F far = Bernoulli::linear(l, x) - log(divide(a, one - exp_nonpositive(-a)));
    return select(a < splat<F>(2.0f), near, far);
  }

  // The mean of p, minus x.
  template <class F> static VAE_FAST_FN void gradient(const F* p, F x, F* by) {
    const F l = p[0], a = absolute(l), one = splat<F>(1.0f), square = l * l;
    // fit_polynomials.py coth: (coth(l/2)/2 - 1/l)/l of l², |l| <= 2; 4.2e-09 absolute
    const F series = polynomial(square, square * square, 0.0833333358168602f, -0.001388878794386983f,
                                3.304820347693749e-05f, -8.118528853628959e-07f, 1.637590330005878e-08f);
    // Of the nearer end of [0, 1]. The bound is for CUDA's division.
    const F e = exp_nonpositive(-a), from_end = divide(one, minimum(splat<F>(0x1p126f), a)) - divide(e, one - e);
    const F far = select(l < splat<F>(0.0f), from_end - x, (one - x) - from_end);
    by[0] = select(a < splat<F>(2.0f), fma(l, series, splat<F>(0.5f) - x), far);
  }
};

// p(x) = N(x; mean, exp logvar)
struct Gaussian {
  static constexpr int parameters = 2;
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

// p(x) = exp(-|x - location| / exp s) / (2·exp s)
struct Laplace {
  static constexpr int parameters = 2;
  static constexpr float far = 87.0f;  // beyond, 2^k leaves the exponent's range

  // |location - x|·exp(-s) and its derivative by the location.
  template <class F> struct Scaled { F distance, slope; };
  template <bool kNear, class F> static VAE_FAST_FN Scaled<F> scaled(const F* p, F x) {
    const F d = p[0] - x, none = splat<F>(0.0f), one = splat<F>(1.0f), distance = absolute(d);
    const F sign = select(d > none, one, select(d < none, -one, d));  // 0 and NaN pass
    const Reduced<F> e = reduce<-1>(p[1]);
    const F inverse = fma(power(e), e.p, power(e));
    const Scaled<F> near{distance * inverse, sign * inverse};
    const auto is_far = absolute(p[1]) > splat<F>(far);
    if (kNear || !any<F>(is_far)) return near;
    return {select(is_far, times_exp(distance, -p[1]), near.distance), select(is_far, times_exp(sign, -p[1]), near.slope)};
  }

  template <bool kNear = false, class F> static VAE_FAST_FN F nll(const F* p, F x) {
    return splat<F>(kLn2) + p[1] + scaled<kNear>(p, x).distance;
  }

  template <bool kNear = false, class F> static VAE_FAST_FN void gradient(const F* p, F x, F* by) {
    const Scaled<F> s = scaled<kNear>(p, x);
    by[0] = s.slope;
    by[1] = splat<F>(1.0f) - s.distance;
  }
};

VAE_FAST_NAMESPACE_END
