// A negative binomial count that drops out, that is becomes 0, with some probability.
#pragma once

#include "negative_binomial.h"

VAE_FAST_NAMESPACE_BEGIN

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

  template <class F> static VAE_FAST_FN bool is_common(const F* p, F x) { return NegativeBinomial::is_common(p, x); }
  template <class F> static VAE_FAST_FN F nll_common(const F* p, F x) {
    const F one = splat<F>(1.0f), none = splat<F>(0.0f), nll = NegativeBinomial::nll_common(p, x), d = p[2];
    const auto counted = is_counted(x);
    // One logarithm for both: of σ(d) + σ(-d)·exp(-zero), and of 1 + exp(-|d|).
    const F e = exp_nonpositive(-absolute(d)), larger = reciprocal(one + e), smaller = e * larger;
    const auto negative = d < none;
    const F kept = select(negative, larger, smaller), dropped = select(negative, smaller, larger);
    const Nonpositive<F> of_zero = nonpositive(-select(counted, none, nll));
    const F probability = fma(kept, of_zero.exp, dropped);
    const F log = log_ratio(select(counted, one + e, probability), one, select(counted, e, kept * of_zero.expm1)).value();
    const auto small = !counted & (probability < splat<F>(0x1p-40f));
    const F result = select(counted, nll + (maximum(none, d) + log), -log);
    if (!any<F>(small)) return result;
    const F larger_term = maximum(none, -d);
    return select(small, minimum(nll, larger_term) + (softplus_tail(-d) - softplus_tail(-d - nll)), result);
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
