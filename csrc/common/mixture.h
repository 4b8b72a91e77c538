// A mixture of K discretized logistics at every pixel of C = 1 or 3 channels, as in PixelCNN++ (Salimans et al., 2017),
// section 2, NVAE and VDVAE: nll = -log Σ_k softmax(logits)_k·Π_c P_k(x_c | channels before c). K is known at run time.
//
// `load(p)` gives the pixel's parameter p; t[c] = 2x - 1 is its target.
#pragma once

#include "logistic.h"

VAE_FAST_NAMESPACE_BEGIN

// Which of a pixel's parameters is which: K logits; then of every channel K means, K log-scales and, where there are
// three channels, K coefficients.
template <int C> struct MixtureLayout {
  static constexpr int kinds = C == 1 ? 2 : 3;               // of parameters of a channel
  static constexpr int per_component = 1 + C * kinds;        // 3 or 10
  int components;
  VAE_FAST_FN int logit(int k) const { return k; }
  VAE_FAST_FN int mean(int c, int k) const { return (1 + c * kinds) * components + k; }
  VAE_FAST_FN int log_scale(int c, int k) const { return mean(c, k) + components; }
  VAE_FAST_FN int coefficient(int c, int k) const { return mean(c, k) + 2 * components; }
};

// tanh(x) and 1 - tanh(x)², neither cancels.
template <class F> struct Tanh { F value, slope; };

template <class F> VAE_FAST_FN Tanh<F> tanh(F x) {
  const F two = splat<F>(2.0f), e = expm1_nonpositive(splat<F>(-2.0f) * absolute(x)), half = divide(splat<F>(1.0f), e + two);
  const u32_of<F> sign = bit_cast<u32_of<F>>(x) & 0x80000000u;
  return {bit_cast<F>(bit_cast<u32_of<F>>(-e * half) | sign), (splat<F>(4.0f) * half) * fma(e, half, half)};
}

// The nll of a pixel under one component; with kGradient its derivatives by that component's parameters.
template <class F, int C> struct MixtureComponent {
  F nll, by_mean[C], by_log_scale[C], by_coefficient[C];
};

template <int C, bool kGradient, class F, class Load>
VAE_FAST_FN MixtureComponent<F, C> mixture_component(const F* t, const MixtureLayout<C>& at, int k, Load load) {
  MixtureComponent<F, C> result;
  F mean[C];
  Tanh<F> coefficient[C];
  for (int c = 0; c < C; ++c) mean[c] = load(at.mean(c, k));
  if constexpr (C == 3) {
    // Green is given red, blue is given red and green.
    for (int c = 0; c < C; ++c) coefficient[c] = tanh(load(at.coefficient(c, k)));
    mean[1] = fma(coefficient[0].value, t[0], mean[1]);
    mean[2] = fma(coefficient[2].value, t[1], fma(coefficient[1].value, t[0], mean[2]));
  }
  for (int c = 0; c < C; ++c) {
    const F log_scale = load(at.log_scale(c, k));
    const LogisticBin<F> bin(t[c], mean[c], log_scale);
    result.nll = c == 0 ? bin.nll() : result.nll + bin.nll();
    if constexpr (kGradient) bin.gradient(log_scale, result.by_mean[c], result.by_log_scale[c]);
  }
  if constexpr (kGradient && C == 3) {
    result.by_coefficient[0] = result.by_mean[1] * t[0] * coefficient[0].slope;
    result.by_coefficient[1] = result.by_mean[2] * t[0] * coefficient[1].slope;
    result.by_coefficient[2] = result.by_mean[2] * t[1] * coefficient[2].slope;
  }
  return result;
}

// exp(x) for x <= 0; a weight that nobody could see is 0, so that what it multiplies does not become subnormal.
template <class F> VAE_FAST_FN F weight_exp(F x) {
  return select(x < splat<F>(-80.0f), splat<F>(0.0f), exp_nonpositive(x));
}

// The sums over components that the nll is made of, and the weights that its derivatives are: log Σ exp(logits), and
// log Σ exp(logits - nll of the component), one exponential a term. Logits are taken relative to the largest of them.
template <class F> struct MixtureSums {
  F largest_logit, prior, largest, joint;

  template <class Load> VAE_FAST_FN MixtureSums(int components, Load load) {
    largest_logit = load(0);
    for (int k = 1; k < components; ++k) largest_logit = maximum(largest_logit, load(k));
    prior = joint = splat<F>(0.0f);
    largest = splat<F>(-0x1p127f);
  }
  // Call for every component in turn; gives its joint log-likelihood.
  VAE_FAST_FN F add(F logit, F component_nll) {
    const F relative = logit - largest_logit, x = relative - component_nll, e = exp_nonpositive(-absolute(x - largest));
    const auto larger = x > largest;
    const F one = splat<F>(1.0f);
    prior = prior + exp_nonpositive(relative);
    joint = fma(joint, select(larger, e, one), select(larger, one, e));
    largest = select(larger, x, largest);
    return x;
  }
  VAE_FAST_FN F log_joint() const { return largest + log(joint); }
  VAE_FAST_FN F nll() const { return log(prior) - log_joint(); }
};

// The probabilities of a component before and after the pixel was seen, from finished sums. The nll's derivative by the
// component's logit is prior - posterior, by its other parameters posterior · (that of the component's own nll).
template <class F> struct MixtureWeights {
  F largest_logit, inverse_prior, log_joint;

  VAE_FAST_FN explicit MixtureWeights(const MixtureSums<F>& sums)
      : largest_logit(sums.largest_logit), inverse_prior(divide(splat<F>(1.0f), sums.prior)), log_joint(sums.log_joint()) {}
  VAE_FAST_FN F prior(F logit) const { return weight_exp(logit - largest_logit) * inverse_prior; }
  VAE_FAST_FN F posterior(F joint) const { return weight_exp(joint - log_joint); }
};

// Gives store(p, value) the derivatives by the parameters of one component.
template <int C, class F, class Store>
VAE_FAST_FN void mixture_store(const MixtureLayout<C>& at, int k, F prior, F posterior, const MixtureComponent<F, C>& of,
                               Store store) {
  store(at.logit(k), prior - posterior);
  for (int c = 0; c < C; ++c) {
    store(at.mean(c, k), posterior * of.by_mean[c]);
    store(at.log_scale(c, k), posterior * of.by_log_scale[c]);
    if constexpr (C == 3) store(at.coefficient(c, k), posterior * of.by_coefficient[c]);
  }
}

// -log p of a pixel.
template <int C, class F, class Load> VAE_FAST_FN MixtureSums<F> mixture_sums(const F* t, int components, Load load) {
  const MixtureLayout<C> at{components};
  MixtureSums<F> sums(components, load);
  for (int k = 0; k < components; ++k) sums.add(load(at.logit(k)), mixture_component<C, false>(t, at, k, load).nll);
  return sums;
}
template <int C, class F, class Load> VAE_FAST_FN F mixture_nll(const F* t, int components, Load load) {
  return mixture_sums<C>(t, components, load).nll();
}

// store(p, value) for the derivative of -log p of a pixel by each of its parameters. What a component gives is computed
// twice, for the sums and for the derivatives: where there is no room to keep it.
template <int C, class F, class Load, class Store>
VAE_FAST_FN void mixture_gradient(const F* t, int components, Load load, Store store) {
  const MixtureLayout<C> at{components};
  const MixtureWeights<F> weights(mixture_sums<C>(t, components, load));
  for (int k = 0; k < components; ++k) {
    const MixtureComponent<F, C> component = mixture_component<C, true>(t, at, k, load);
    const F logit = load(at.logit(k)), joint = (logit - weights.largest_logit) - component.nll;
    mixture_store<C>(at, k, weights.prior(logit), weights.posterior(joint), component, store);
  }
}

VAE_FAST_NAMESPACE_END
