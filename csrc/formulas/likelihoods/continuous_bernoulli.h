// The Bernoulli density on [0, 1].
#pragma once

#include "bernoulli.h"

VAE_FAST_NAMESPACE_BEGIN

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

VAE_FAST_NAMESPACE_END
