// The op `likelihood`, element by element: each member of the family is one struct with the negative log-likelihood of
// a target x under parameters p[0..parameters), and its derivatives by them. Adding a member is adding a struct here
// (and its name to VAE_FAST_LIKELIHOODS); the loops and grids around it do not know which one they run.
#pragma once

#include "counts.h"
#include "logistic.h"
#include "special.h"

VAE_FAST_NAMESPACE_BEGIN

// p(x) = σ(l)^x (1 - σ(l))^(1-x), from the logit l.
struct Bernoulli {
  static constexpr int parameters = 1;

  // max(l, 0) - x·l + log(1 + exp(-|l|)): no exp that overflows, no log of 0.
  template <class F> static VAE_FAST_FN F nll(const F* p, F x) {
    const F l = p[0];
    return fma(-x, l, maximum(splat<F>(0.0f), l)) + log1p_unit(exp_nonpositive(-absolute(l)));
  }

  // σ(l) - x as (1-x)·σ(l) - x·σ(-l): exact in both tails, where σ(l) rounds to 1. One division serves both.
  template <class F> static VAE_FAST_FN void gradient(const F* p, F x, F* by) {
    const F l = p[0], one = splat<F>(1.0f), e = exp_nonpositive(-absolute(l));
    const auto negative = l < splat<F>(0.0f);
    const F success = select(negative, e, one), failure = select(negative, one, e);
    by[0] = divide(fma(one - x, success, -(x * failure)), one + e);
  }
};

// The Bernoulli density on [0, 1] with the constant that makes it one: p(x) = C(l)·σ(l)^x (1 - σ(l))^(1-x),
// C = l / tanh(l/2). Loaiza-Ganem and Cunningham, "The continuous Bernoulli", 2019.
struct ContinuousBernoulli {
  static constexpr int parameters = 1;

  template <class F> static VAE_FAST_FN F nll(const F* p, F x) {
    const F l = p[0], a = absolute(l), one = splat<F>(1.0f), square = l * l;
    // log(sinh(l/2) / (l/2)) / l², where the other form cancels
    const F series = polynomial(square, square * square, 0.0416666641831398f, -0.00034719437826424837f,
                                5.475809302879497e-06f, -8.846339483170595e-08f);
    const F near = fma(splat<F>(0.5f) - x, l, square * series);
    const F far = fma(-x, l, maximum(splat<F>(0.0f), l)) + log(divide(one - exp_nonpositive(-a), a));
    return select(a < splat<F>(2.0f), near, far);
  }

  // The mean of p, minus x.
  template <class F> static VAE_FAST_FN void gradient(const F* p, F x, F* by) {
    const F l = p[0], a = absolute(l), one = splat<F>(1.0f), square = l * l;
    const F series = polynomial(square, square * square, 0.0833333358168602f, -0.001388878794386983f,
                                3.304820347693749e-05f, -8.118528853628959e-07f, 1.637590330005878e-08f);
    const F e = exp_nonpositive(-a), from_end = divide(one, a) - divide(e, one - e);  // of the nearer end of [0, 1]
    const F far = select(l < splat<F>(0.0f), from_end - x, (one - x) - from_end);
    by[0] = select(a < splat<F>(2.0f), fma(l, series, splat<F>(0.5f) - x), far);
  }
};

// p(x) = N(x; mean, exp logvar)
struct Gaussian {
  static constexpr int parameters = 2;

  template <class F> static VAE_FAST_FN F nll(const F* p, F x) {
    const F difference = x - p[0];
    return splat<F>(0.5f) * (splat<F>(kLog2Pi) + p[1] + difference * (difference * exp_saturated(-p[1])));
  }

  template <class F> static VAE_FAST_FN void gradient(const F* p, F x, F* by) {
    const F difference = x - p[0], scaled = difference * exp_saturated(-p[1]);
    by[0] = -scaled;
    by[1] = splat<F>(0.5f) * (splat<F>(1.0f) - difference * scaled);
  }
};

// p(x) = exp(-|x - location| / exp s) / (2·exp s)
struct Laplace {
  static constexpr int parameters = 2;

  template <class F> static VAE_FAST_FN F nll(const F* p, F x) {
    return splat<F>(kLn2) + p[1] + absolute(x - p[0]) * exp_saturated(-p[1]);
  }

  template <class F> static VAE_FAST_FN void gradient(const F* p, F x, F* by) {
    const F none = splat<F>(0.0f), difference = x - p[0], inverse = exp_saturated(-p[1]);
    by[0] = select(difference > none, -inverse, select(difference < none, inverse, difference));  // 0 and NaN pass
    by[1] = splat<F>(1.0f) - absolute(difference) * inverse;
  }
};

// The order is the one of vae_fast/backends/native/members.py.
#define VAE_FAST_LIKELIHOODS(X)                                                                 \
  X(Bernoulli) X(Gaussian) X(ContinuousBernoulli) X(Laplace) X(DiscretizedLogistic) X(Poisson) \
  X(NegativeBinomial) X(ZeroInflatedNegativeBinomial)

VAE_FAST_NAMESPACE_END
