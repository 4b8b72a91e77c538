// The op `importance`, element by element: log p(z) − log q(z) of z = mu + σ·eps, for q = N(mu, σ²) and p = N(mu_p, σ_p²).
// Burda, Grosse, Salakhutdinov, "Importance weighted autoencoders", 2016, equation 8.
//
// With h = log(σ/σ_p), b = (z − mu_p)/σ_p and u = b − eps it is eps²/2 + h − b²/2 = h − u·(u/2 + eps): 0 where q is p.
// Near p, u is (mu − mu_p)/σ_p + expm1(h)·eps, from terms that are as small as it is.
#pragma once

#include "../math/special.h"

VAE_FAST_NAMESPACE_BEGIN

// What all draws of an element share; of N(0, 1), mu_p = 0 and 1/σ_p = 1.
template <class F> struct Proposal {
  F distance;  // mu − mu_p
  F h, expm1;  // expm1(h) where is_near
  Factors<F> std, inverse;  // σ, 1/σ_p
  VAE_FAST_FN auto is_near() const { return absolute(h) <= splat<F>(0.5f); }
};

template <bool kHasPrior, class F> VAE_FAST_FN Proposal<F> proposal_of(F mu, F logvar, F prior_mu, F prior_logvar) {
  const F half = splat<F>(0.5f), one = splat<F>(1.0f);
  const auto near_expm1 = [](F h) VAE_FAST_LAMBDA { return reduce<2>(clamp(h, kLeastExponent, kMostExponent)).p; };
  const F own = half * logvar;
  if constexpr (!kHasPrior) return {mu, own, near_expm1(own), exp_factors(own), {one, one}};
  const F h = fma(half, logvar, -half * prior_logvar);
  return {mu - prior_mu, h, near_expm1(h), exp_factors(own), exp_factors(-half * prior_logvar)};
}

// Of one draw: b, u, and eps·σ/σ_p.
template <class F> struct Drawn { F b, u, spread; };

template <bool kHasPrior, class F> VAE_FAST_FN Drawn<F> drawn_of(const Proposal<F>& q, F eps) {
  const F scaled = kHasPrior ? q.inverse.times(q.distance) : q.distance, near = fma(q.expm1, eps, scaled);
  F spread = q.std.times(eps), b = fma(eps * q.std.first, q.std.second, q.distance);  // z − mu_p
  if constexpr (kHasPrior) {
    spread = q.inverse.times(spread), b = q.inverse.times(b);
    // z may leave float32 where b does not.
    const auto beyond = b - b != splat<F>(0.0f);  // infinite or NaN
    if (any<F>(beyond)) {
      const F within = times_exp(eps, q.h), sum = scaled + within;
      spread = select(beyond, within, spread);
      b = select(beyond, select(sum == sum, sum, b), b);
    }
  }
  return {select(q.is_near(), near + eps, b), select(q.is_near(), near, b - eps),
          select(q.is_near(), fma(q.expm1, eps, eps), spread)};
}

template <class F> VAE_FAST_FN F log_weight(const Proposal<F>& q, const Drawn<F>& z, F eps) {
  return fma(-z.u, fma(splat<F>(0.5f), z.u, eps), q.h);
}

// The log weight's derivatives. By mu and logvar: without kPath the total ones, −b/σ_p and (1 − b·eps·σ/σ_p)/2; with kPath
// those through z alone, toward/σ = eps/σ − b/σ_p and eps·toward/2, where toward = eps − b·σ/σ_p = −(u + b·expm1(h)). By the
// prior's parameters: at fixed z.
template <class F> struct WeightSlopes { F by_mu, by_logvar, by_prior_mu, by_prior_logvar; };

template <bool kHasPrior, bool kPath, class F>
VAE_FAST_FN WeightSlopes<F> weight_slopes(const Proposal<F>& q, const Drawn<F>& z, F eps) {
  const F half = splat<F>(0.5f), slope = kHasPrior ? q.inverse.times(z.b) : z.b;
  const F by_prior_logvar = fma(half * z.b, z.b, -half);
  if constexpr (!kPath) return {-slope, fma(-half * z.spread, z.b, half), slope, by_prior_logvar};
  const F ratio = z.b * q.std.first * q.inverse.first * q.std.second * q.inverse.second;
  const F toward = select(q.is_near(), -fma(q.expm1, z.b, z.u), eps - ratio);
  const F of_q = select(q.is_near(), toward, eps) / q.std.first / q.std.second;
  return {of_q - select(q.is_near(), splat<F>(0.0f), slope), half * eps * toward, slope, by_prior_logvar};
}

VAE_FAST_NAMESPACE_END
