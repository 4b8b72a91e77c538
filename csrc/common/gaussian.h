// The op `latent`, element by element: z = mu + exp(logvar/2)·eps and KL(N(mu, exp logvar) ‖ prior).
// Kingma and Welling, "Auto-Encoding Variational Bayes", 2014, section 2.4 and appendix B.
#pragma once

#include "math.h"

VAE_FAST_NAMESPACE_BEGIN

// KL(N(mean, exp d) ‖ N(0, 1)) for mean² = squared_mean: ½(mean² + expm1(d) - d), and its derivative by d.
template <class F> struct Divergence { F value, by_logvar; };

template <class F> VAE_FAST_FN Divergence<F> divergence(F squared_mean, const Exponential<F>& d) {
  return {splat<F>(0.5f) * (squared_mean + d.expm1_minus), splat<F>(0.5f) * d.expm1};
}

// KL to another diagonal Gaussian N(mu_p, exp logvar_p) and the derivatives; those by the prior's parameters follow.
template <class F> struct PriorDivergence { F value, by_mu, by_logvar, by_prior_logvar; };

template <class F> VAE_FAST_FN PriorDivergence<F> divergence(F mu, F logvar, F prior_mu, F prior_logvar) {
  const F precision = exp(-prior_logvar), difference = mu - prior_mu;
  const F by_mu = difference * precision, scaled_square = difference * by_mu;
  const Divergence<F> d = divergence(scaled_square, exponential(logvar - prior_logvar));
  return {d.value, by_mu, d.by_logvar, -fma(splat<F>(0.5f), scaled_square, d.by_logvar)};
}

// torch.clamp passes the gradient on at the bounds themselves and stops it outside, for NaN too.
template <class F> VAE_FAST_FN F clamp_gradient(F grad, F x, float low, float high) {
  const F below = select(x >= splat<F>(low), grad, splat<F>(0.0f));
  return select(x <= splat<F>(high), below, splat<F>(0.0f));
}

VAE_FAST_NAMESPACE_END
