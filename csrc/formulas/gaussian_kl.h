// The op `latent`, element by element: z = mu + exp(logvar/2)·eps and KL(N(mu, exp logvar) ‖ prior).
// Kingma and Welling, "Auto-Encoding Variational Bayes", 2014, section 2.4 and appendix B.
#pragma once

#include "../api/arguments.h"
#include "../math/special.h"

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

// ---- Other parametrizations than the log-variance (Form in api/arguments.h) ----

// c·tanh(x/c) and its derivative, both without cancellation.
template <class F> struct SoftClamp { F value, slope; };

template <class F> VAE_FAST_FN SoftClamp<F> soft_clamp(F x, float limit) {
  const F one = splat<F>(1.0f), c = splat<F>(limit);
  const Nonpositive<F> e = nonpositive(splat<F>(-2.0f) * absolute(x / c));
  const F sum = one + e.exp, size = c * (absolute(e.expm1) / sum);
  return {bit_cast<F>(bit_cast<u32_of<F>>(size) | (bit_cast<u32_of<F>>(x) & 0x80000000u)), splat<F>(4.0f) * e.exp / (sum * sum)};
}

// mu and raw behind the clamps, with the derivatives of the soft one.
template <class F> struct Clamped { F mu, raw, mu_slope, raw_slope; };

template <class F> VAE_FAST_FN Clamped<F> clamped(F mu, F raw, const Form& form, const Clamp& bounds) {
  const F one = splat<F>(1.0f);
  if (form.soft_clamp == 0) return {mu, bounds.active ? clamp(raw, bounds.low, bounds.high) : raw, one, one};
  const SoftClamp<F> m = soft_clamp(mu, form.soft_clamp), r = soft_clamp(raw, form.soft_clamp);
  return {m.value, r.value, m.slope, r.slope};
}

// A log σ² that is a multiple of raw, and that multiple.
template <class F> VAE_FAST_FN F exact_logvar(F raw, const Form& form) {
  return form.kind == Parametrization::logvar ? raw : raw + raw;
}
VAE_FAST_FN float logvar_slope(const Form& form) { return form.kind == Parametrization::logvar ? 1.0f : 2.0f; }

// σ and σ - 1, without the cancellation where raw has none; dσ/draw and dlog σ/draw.
template <class F> struct Std { F value, minus_1, slope, log_slope; };

constexpr float kLeastNormal = 0x1p-126f;

template <class F> VAE_FAST_FN Std<F> std_of(F raw, const Form& form) {
  const F one = splat<F>(1.0f), half = splat<F>(0.5f), epsilon = splat<F>(form.epsilon);
  switch (form.kind) {
    case Parametrization::logvar: {
      // σ = exp(raw/2)·√(1 + ε/exp(raw)) where exp(raw) may leave float32.
      const Exponential<F> e = exponential(half * raw);
      const F root = e.first * e.second, square = root * root, var = square + epsilon, share = one + epsilon / square;
      const auto far = raw > splat<F>(20.0f);
      const F value = sqrt(select(far, share, var)) * select(far, root, one);
      const F log_slope = half * select(far, one / share, square / var);
      return {value, select(far, value - one, (e.half_expm1 + e.half_expm1 + epsilon) / (value + one)), value * log_slope, log_slope};
    }
    case Parametrization::logstd: {
      const Reduced<F> reduced = reduce<2>(bounded(raw));
      const F e = exp(reduced), minus_1 = select(reduced.k == splat<F>(0.0f), reduced.p, e - one);
      const F value = e + epsilon;
      return {value, minus_1 + epsilon, e, select(raw > splat<F>(20.0f), one / (one + epsilon / e), e / value)};
    }
    case Parametrization::softplus: {
      // log(1 + e) with what 1 + e rounded off: an error of σ counts twice in 1/σ².
      const F e = exp(-absolute(raw)), sum = one + e, inverse = one / sum;
      const F lost = select(sum >= splat<F>(kSqrtTwo), (e - (sum - one)) * inverse, splat<F>(0.0f));
      const F value = maximum(splat<F>(0.0f), raw) + (log1p(e, sum).value + lost) + epsilon;
      const F sigmoid = select(raw < splat<F>(0.0f), e * inverse, inverse);
      return {value, value - one, sigmoid, select(value < splat<F>(kLeastNormal), one, sigmoid / value)};
    }
    case Parametrization::std: break;
  }
  const F value = raw + epsilon;
  return {value, (raw - one) + epsilon, one, one / value};
}

// log σ of the σ of raw: below float32's normal numbers too, -inf of 0 and NaN of what is negative.
template <class F> VAE_FAST_FN F log_std(F value, F raw, const Form& form) {
  const F near = log(value), scaled = log(value * splat<F>(0x1p64f)) - splat<F>(64 * kLn2);
  const F of_none = select(value == splat<F>(0.0f), splat<F>(-kInfinity), splat<F>(kNaN));
  const F below = form.kind == Parametrization::softplus ? raw : select(value > splat<F>(0.0f), scaled, of_none);
  return select(value < splat<F>(kLeastNormal), below, near);
}

// A prior's 1/σ as two factors; its σ where form says how it is read, else dlog σ/dlog σ² alone.
template <class F> struct PriorStd { Factors<F> inverse; Std<F> std; bool has_std; };

template <class F> VAE_FAST_FN PriorStd<F> prior_std(F raw, const Form& form) {
  const F zero = splat<F>(0.0f), one = splat<F>(1.0f), half = splat<F>(0.5f);
  if (!form.of_prior) return {exp_factors(-half * raw), {zero, zero, zero, half}, false};
  const Std<F> std = std_of(raw, form);
  return {{one / std.value, one}, std, true};
}

// r = σ/σ_p and r - 1; 1 and 0 of the same σ.
template <class F> struct Ratio { F value, minus_1; };

template <class F> VAE_FAST_FN Ratio<F> ratio(const Std<F>& q, const PriorStd<F>& prior) {
  if (prior.has_std) return {q.value / prior.std.value, prior.inverse.times(q.value - prior.std.value)};
  const F r = prior.inverse.times(q.value);
  return {r, r - splat<F>(1.0f)};
}

// d²/(2σ_p²) and its derivative by d.
template <class F> VAE_FAST_FN ScaledSquare<F> scaled_square(F d, F prior_raw, const PriorStd<F>& prior) {
  if (!prior.has_std) return scaled_square(d, prior_raw);
  const F root = d / prior.std.value;
  return {splat<F>(0.5f) * root, root, root / prior.std.value};
}

// (r² - 1)/2 - log r of r and r - 1; log_r() is called where r is not a normal number.
template <class F, class Log> VAE_FAST_FN F half_square_minus_log(F r, F minus_1, Log log_r) {
  F log_minus = log1p(minus_1, r).minus;  // log r - (r - 1)
  const auto below = r < splat<F>(kLeastNormal);  // or negative
  if (any<F>(below)) log_minus = select(below, log_r() - minus_1, log_minus);
  return fma(splat<F>(0.5f) * minus_1, minus_1, -log_minus);
}

// What a sample and KL are made of: z = mu + first·second·eps, and the term of KL.
template <class F> struct Sampled { F mu, first, second, term; };

template <bool kHasPrior, class F>
VAE_FAST_FN Sampled<F> sample_of(F given_mu, F given_raw, F prior_mu, F prior_raw, const Form& form, const Clamp& bounds) {
  const F one = splat<F>(1.0f), half = splat<F>(0.5f);
  const Clamped<F> q = clamped(given_mu, given_raw, form, bounds);
  Clamped<F> p{prior_mu, prior_raw, one, one};
  if (kHasPrior && form.of_prior) p = clamped(prior_mu, prior_raw, form, bounds);
  if (form.has_exact_logvar()) {
    const F logvar = exact_logvar(q.raw, form);
    const Exponential<F> e = exponential(half * logvar);
    if constexpr (!kHasPrior) return {q.mu, e.first, e.second, divergence(q.mu, e)};
    const F prior_logvar = form.of_prior ? exact_logvar(p.raw, form) : p.raw;
    return {q.mu, e.first, e.second, divergence(q.mu, logvar, p.mu, prior_logvar).value};
  }
  const Std<F> std = std_of(q.raw, form);
  const auto log_q = [&]() VAE_FAST_LAMBDA { return log_std(std.value, q.raw, form); };
  if constexpr (!kHasPrior) {
    const F rest = half_square_minus_log(std.value, std.minus_1, log_q);
    return {q.mu, std.value, one, fma(half * q.mu, q.mu, rest)};
  } else {
    const PriorStd<F> prior = prior_std(p.raw, form);
    const Ratio<F> r = ratio(std, prior);
    const F rest = half_square_minus_log(r.value, r.minus_1, [&]() VAE_FAST_LAMBDA {
      return log_q() - (form.of_prior ? log_std(prior.std.value, p.raw, form) : half * p.raw);
    });
    const ScaledSquare<F> s = scaled_square(q.mu - p.mu, p.raw, prior);
    return {q.mu, std.value, one, fma(s.half, s.root, rest)};
  }
}

// The gradients of mu, raw and the prior's, from those of z (`grad`, and `weighted`, times eps) and of KL (`upstream`).
template <class F> struct FormGradient { F mu, raw, prior_mu, prior_raw; };

template <bool kHasPrior, class F>
VAE_FAST_FN FormGradient<F> gradient_of(F given_mu, F given_raw, F prior_mu, F prior_raw, const Form& form, const Clamp& bounds,
                                        bool has_z, F grad, F weighted, bool has_kl, F upstream) {
  const F zero = splat<F>(0.0f), one = splat<F>(1.0f), two = splat<F>(2.0f), half = splat<F>(0.5f);
  const Clamped<F> q = clamped(given_mu, given_raw, form, bounds);
  Clamped<F> p{prior_mu, prior_raw, one, one};
  if (kHasPrior && form.of_prior) p = clamped(prior_mu, prior_raw, form, bounds);
  F kl_by_mu = q.mu, kl_by_raw, kl_by_prior_raw = zero, drawn;
  if (form.has_exact_logvar()) {
    const F slope = splat<F>(logvar_slope(form)), logvar = exact_logvar(q.raw, form);
    const Exponential<F> e = exponential(half * logvar);
    drawn = half * slope * weighted * e.first * e.second;
    if constexpr (kHasPrior) {
      const PriorDivergence<F> d = divergence(q.mu, logvar, p.mu, form.of_prior ? exact_logvar(p.raw, form) : p.raw);
      kl_by_mu = d.by_mu;
      kl_by_raw = slope * d.by_logvar;
      kl_by_prior_raw = form.of_prior ? slope * d.by_prior_logvar : d.by_prior_logvar;
    } else {
      kl_by_raw = slope * e.half_expm1;
    }
  } else {
    const Std<F> std = std_of(q.raw, form);
    drawn = weighted * std.slope;
    if constexpr (kHasPrior) {
      const PriorStd<F> prior = prior_std(p.raw, form);
      const Ratio<F> r = ratio(std, prior);
      const ScaledSquare<F> s = scaled_square(q.mu - p.mu, p.raw, prior);
      kl_by_mu = s.slope;
      kl_by_raw = r.minus_1 * (prior.inverse.times(std.slope) + std.log_slope);
      kl_by_prior_raw = -fma(s.half + s.half, s.root, r.minus_1 * (r.minus_1 + two)) * prior.std.log_slope;
    } else {
      kl_by_raw = std.minus_1 * (std.slope + std.log_slope);
    }
  }
  // Selected, not multiplied by zero: what does not count may be infinite.
  F mu = has_z ? grad : zero, raw = has_z ? drawn : zero;
  if (has_kl) mu = fma(upstream, kl_by_mu, mu), raw = fma(upstream, kl_by_raw, raw);
  F of_prior_mu = has_kl ? -(upstream * kl_by_mu) : zero, of_prior_raw = has_kl ? upstream * kl_by_prior_raw : zero;
  if (form.soft_clamp != 0) {
    mu = mu * q.mu_slope, raw = raw * q.raw_slope;
    if (form.of_prior) of_prior_mu = of_prior_mu * p.mu_slope, of_prior_raw = of_prior_raw * p.raw_slope;
  } else if (bounds.active) {
    raw = clamp_gradient(raw, given_raw, bounds.low, bounds.high);
    if (form.of_prior) of_prior_raw = clamp_gradient(of_prior_raw, prior_raw, bounds.low, bounds.high);
  }
  return {mu, raw, of_prior_mu, of_prior_raw};
}

VAE_FAST_NAMESPACE_END
