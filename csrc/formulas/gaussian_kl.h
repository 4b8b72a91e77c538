// The op `latent`, element by element: z = mu + exp(logvar/2)·eps and KL(N(mu, exp logvar) ‖ prior).
// Kingma and Welling, "Auto-Encoding Variational Bayes", 2014, section 2.4 and appendix B.
#pragma once

#include "../math/elementary.h"

VAE_FAST_NAMESPACE_BEGIN

// KL to another diagonal Gaussian N(mu_p, exp logvar_p) and the derivatives; those by the prior's parameters follow.
template <class F> struct PriorDivergence { F value, by_mu, by_logvar, by_prior_logvar; };

template <bool kNear = false, class F>
VAE_FAST_FN PriorDivergence<F> divergence(F mu, F logvar, F prior_mu, F prior_logvar) {
  const F half = splat<F>(0.5f);
  const Exponential<F> e = exponential(fma(half, logvar, -half * prior_logvar));
  const ScaledSquare<F> s = scaled_square<kNear>(mu - prior_mu, prior_logvar);
  return {fma(s.half, s.root, e.half_expm1_minus), s.slope, e.half_expm1, -fma(s.half, s.root, e.half_expm1)};
}

// The same to N(0, 1), of exponential(logvar/2); its derivatives are mu and half_expm1.
template <class F> VAE_FAST_FN F divergence(F mu, const Exponential<F>& e) {
  return fma(splat<F>(0.5f) * mu, mu, e.half_expm1_minus);
}

// torch.clamp passes the gradient on at the bounds themselves and stops it outside, for NaN too.
template <class F> VAE_FAST_FN F clamp_gradient(F grad, F x, float low, float high) {
  const F below = select(x >= splat<F>(low), grad, splat<F>(0.0f));
  return select(x <= splat<F>(high), below, splat<F>(0.0f));
}

VAE_FAST_NAMESPACE_END
