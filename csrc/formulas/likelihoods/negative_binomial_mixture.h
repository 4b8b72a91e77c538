// A count of one of two negative binomials: foreground and background of a protein in totalVI.
#pragma once

#include "negative_binomial.h"

VAE_FAST_NAMESPACE_BEGIN

// p(x) = σ(l)·NB(x; mean_1, theta) + σ(-l)·NB(x; mean_2, theta_2), of p = {mean_1, mean_2, theta, l, theta_2}
struct NegativeBinomialMixture : OfCounts<NegativeBinomialMixture> {
  static constexpr int parameters = 5;

  // What a formula of the negative binomial gives for both components.
  template <class F> struct Both { F first, second; };
  template <class F> static VAE_FAST_FN Both<F> nlls_of_zero(const F* p) {
    const F first[] = {p[0], p[2]}, second[] = {p[1], p[4]};
    return {NegativeBinomial::nll_of_zero(first), NegativeBinomial::nll_of_zero(second)};
  }
  template <class F> static VAE_FAST_FN Both<F> nlls_of_count(const F* p, F x) {
    const F first[] = {p[0], p[2]}, second[] = {p[1], p[4]};
    return {NegativeBinomial::nll_of_count(first, x), NegativeBinomial::nll_of_count(second, x)};
  }

  // Of a probability that float32 holds its logarithm, from the distance to 1; of a smaller one the larger term is taken
  // out of the sum.
  template <class F> static VAE_FAST_FN F mixed(Both<F> nll, F logit) {
    const Sigmoid<F> s = sigmoid(logit);
    const Nonpositive<F> a = nonpositive(-nll.first), b = nonpositive(-nll.second);
    const F probability = fma(s.value, a.exp, s.complement * b.exp);
    const F from_one = -log1p(fma(s.value, a.expm1, s.complement * b.expm1), probability).value;
    const auto small = probability < splat<F>(0x1p-40f);
    if (!any<F>(small)) return from_one;
    const F first = nll.first + softplus(-logit), second = nll.second + softplus(logit), larger = minimum(first, second);
    const F apart = select(is_infinite(larger), splat<F>(0.0f), absolute(first - second));
    return select(small, larger - log1p_unit(exp_nonpositive(-apart)), from_one);
  }
  template <class F> static VAE_FAST_FN F nll_of_zero(const F* p) { return mixed(nlls_of_zero(p), p[3]); }
  template <class F> static VAE_FAST_FN F nll_of_count(const F* p, F x) { return mixed(nlls_of_count(p, x), p[3]); }

  template <class F> static VAE_FAST_FN bool is_common(const F* p, F x) {
    const F first[] = {p[0], p[2]}, second[] = {p[1], p[4]};
    return NegativeBinomial::is_common(first, x) & NegativeBinomial::is_common(second, x);
  }
  template <class F> static VAE_FAST_FN F nll_common(const F* p, F x) {
    const F first[] = {p[0], p[2]}, second[] = {p[1], p[4]};
    return mixed(Both<F>{NegativeBinomial::nll_common(first, x), NegativeBinomial::nll_common(second, x)}, p[3]);
  }

  // From the components' nlls and the derivatives of each by its mean and theta.
  template <class F> static VAE_FAST_FN void combine(Both<F> nll, F logit, const F* by_first, const F* by_second, F* by) {
    const F none = splat<F>(0.0f), sum = nll.first + nll.second;
    const F apart = select(nll.first == nll.second, none, nll.second - nll.first);  // two infinite ones are alike
    const Sigmoid<F> s = sigmoid(logit), share = sigmoid(logit + apart);  // share: of the first component, given x
    // σ(l) - share, from the factors that do not cancel
    const F up = share.value * s.complement * nonpositive(-maximum(none, apart)).expm1;
    const F down = -(s.value * share.complement * nonpositive(minimum(none, apart)).expm1);
    const F undefined = select((sum != sum) | (logit != logit), splat<F>(kNaN), none);  // as the value is
    const auto shared = [&](F part, F slope) VAE_FAST_LAMBDA { return select(part == none, none, part * slope) + undefined; };
    by[0] = shared(share.value, by_first[0]);
    by[1] = shared(share.complement, by_second[0]);
    by[2] = shared(share.value, by_first[1]);
    by[3] = select(apart > none, up, down) + undefined;
    by[4] = shared(share.complement, by_second[1]);
  }
  template <class F> static VAE_FAST_FN void gradient_of_zero(const F* p, F* by) {
    const F first[] = {p[0], p[2]}, second[] = {p[1], p[4]};
    F by_first[2], by_second[2];
    NegativeBinomial::gradient_of_zero(first, by_first);
    NegativeBinomial::gradient_of_zero(second, by_second);
    combine(nlls_of_zero(p), p[3], by_first, by_second, by);
  }
  template <class F> static VAE_FAST_FN void gradient_of_count(const F* p, F x, F* by) {
    const F first[] = {p[0], p[2]}, second[] = {p[1], p[4]};
    F by_first[2], by_second[2];
    NegativeBinomial::gradient_of_count(first, x, by_first);
    NegativeBinomial::gradient_of_count(second, x, by_second);
    combine(nlls_of_count(p, x), p[3], by_first, by_second, by);
  }
};

VAE_FAST_NAMESPACE_END
