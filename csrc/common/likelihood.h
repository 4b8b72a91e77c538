// The op `likelihood`, element by element: each member of the family is one struct with the negative log-likelihood of
// a target x under parameters p[0..parameters), and its derivatives by them. Adding a member is adding a struct here
// (and its name to VAE_FAST_LIKELIHOODS); the loops and grids around it do not know which one they run.
#pragma once

#include "math.h"

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

// p(x) = N(x; mean, exp logvar)
struct Gaussian {
  static constexpr int parameters = 2;

  template <class F> static VAE_FAST_FN F nll(const F* p, F x) {
    const F difference = x - p[0];
    return splat<F>(0.5f) * (splat<F>(kLog2Pi) + p[1] + difference * (difference * exp(-p[1])));
  }

  template <class F> static VAE_FAST_FN void gradient(const F* p, F x, F* by) {
    const F difference = x - p[0], scaled = difference * exp(-p[1]);
    by[0] = -scaled;
    by[1] = splat<F>(0.5f) * (splat<F>(1.0f) - difference * scaled);
  }
};

// The order is the one of vae_fast/backends/native/members.py.
#define VAE_FAST_LIKELIHOODS(X) X(Bernoulli) X(Gaussian)

VAE_FAST_NAMESPACE_END
