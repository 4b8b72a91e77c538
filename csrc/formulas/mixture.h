// A mixture of K discretized logistics at every pixel of C = 1 or 3 channels, as in PixelCNN++ (Salimans et al., 2017),
// section 2, NVAE and VDVAE: nll = -log Σ_k softmax(logits)_k·Π_c P_k(x_c | channels before c). K is known at run time.
//
// `load(p)` gives the pixel's parameter p; t[c] = 2x - 1 is its target.
#pragma once

#include "likelihoods/discretized_logistic.h"

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

// tanh(x) and 1 - tanh(x)². A mean's error counts in units of a scale, which may be small: both are rounded but little.
template <class F> struct Tanh { F value, slope; };

template <class F> VAE_FAST_FN Tanh<F> tanh(F x) {
  const F one = splat<F>(1.0f), size = absolute(x), square = x * x;
  const F e = exp_nonpositive(splat<F>(-2.0f) * size), half = divide(one, one + e);
  // fit_polynomials.py tanh: (tanh(x) - x)/x³ of x², |x| <= 5/8; 8.6e-09 relative to tanh
  const F q = polynomial(square, square * square, -0.333332819422f, 0.133314422036f, -0.0537397155531f, 0.0206390887954f,
                         -0.00570498872745f);
  const F value = select(size < splat<F>(0.625f), fma(size * square, q, size), fma(splat<F>(-2.0f) * e, half, one));
  const u32_of<F> sign = bit_cast<u32_of<F>>(x) & 0x80000000u;
  return {bit_cast<F>(bit_cast<u32_of<F>>(value) | sign), splat<F>(4.0f) * e * (half * half)};
}

// The mass p = exp(-fall)·factor that a logistic puts on a level (logistic.h), and the derivatives of -log p by mean and
// log-scale. A sum over components needs p itself, so there is no logarithm in it, and one division.
//
// Inside, with m = |from_mean|/scale, from_mean = t - mean, and h half a level's width, E = exp(-m), r = exp(-h):
// p = exp(-m)·(1 - r²) / ((1 + E·r)·(E + r)). A level at an end has one edge at a distance z: p = σ(z). Beyond kMaxLogScale
// 1 - r² is 2h.
template <class F> struct LogisticMass {
  F fall, factor, by_mean, by_log_scale;

  template <bool kGradient> static VAE_FAST_FN LogisticMass of(F t, F from_mean, F log_scale) {
    const F none = splat<F>(0.0f), one = splat<F>(1.0f), two = splat<F>(2.0f), least = splat<F>(kMinLogScale);
    const auto first = t < splat<F>(-0.999f), last = t > splat<F>(0.999f);
    const Factors<F> factors = exp_factors_below(-maximum(least, log_scale));  // of what may be large
    const F inverse = factors.first * factors.second, centre = factors.times(from_mean), distance = absolute(centre);
    const F to_edge = inverse * splat<F>(1.0f / 255.0f), half = maximum(splat<F>(4.5399930e-5f / 255.0f), to_edge);  // exp(-kMaxLogScale)
    const F below = expm1_nonpositive(-half), r = below + one, mass = -below * (below + two);
    const F z = select(first, centre + to_edge, to_edge - centre);

    const auto end = first | last;  // an int of bools, so not the type of the next
    const auto near = distance < half;
    const F m = select(end, absolute(z), distance), E = exp_nonpositive(-m), part = mass * select(near, E, one);
    const F denominator = select(end, one + E, fma(E, r, one) * (E + r)), numerator = select(end, one, part);
    const F excess = maximum(none, log_scale - splat<F>(kMaxLogScale));
    LogisticMass p;
    p.fall = select(end, maximum(none, -z), select(near, none, m) + excess);
    if constexpr (!kGradient) {
      p.factor = divide(numerator, denominator);
    } else {
      const F inverse_denominator = divide(one, denominator), share = E * inverse_denominator;
      p.factor = numerator * inverse_denominator;
      const F of_edge = select(z < none, one, E) * inverse_denominator;             // σ(-z)
      const F outward = fma(-share, fma(r, r, fma(two * E, r, one)), one);          // by m: 1 where E is 0
      const F widening = fma(-share, mass, one) + two * divide(r * r, mass);        // by -h
      const F slope = inverse * select(end, of_edge, outward);
      p.by_mean = select(first, slope, select(last | (centre > none), -slope, slope));
      // Finite, so that a posterior of 0 makes it 0, and so that z·0 is 0.
      const F bounded_z = clamp(z, -kLargest, kLargest), bounded_m = minimum(splat<F>(kLargest), m);
      p.by_log_scale = select(log_scale < least, none, select(end, bounded_z * of_edge, fma(half, widening, -(bounded_m * outward))));
    }
    return p;
  }
};

// A pixel under one component: p = exp(-fall)·factor; with kGradient the derivatives of -log p by the parameters.
template <class F, int C> struct MixtureComponent {
  F fall, factor, by_mean[C], by_log_scale[C], by_coefficient[C];
};

template <int C, bool kGradient, class F, class Load>
VAE_FAST_FN MixtureComponent<F, C> mixture_component(const F* t, const MixtureLayout<C>& at, int k, Load load) {
  MixtureComponent<F, C> result;
  F from_mean[C];
  Tanh<F> coefficient[C];
  for (int c = 0; c < C; ++c) from_mean[c] = t[c] - load(at.mean(c, k));
  if constexpr (C == 3) {
    // Green is given red, blue is given red and green.
    for (int c = 0; c < C; ++c) coefficient[c] = tanh(load(at.coefficient(c, k)));
    from_mean[1] = fma(-coefficient[0].value, t[0], from_mean[1]);
    from_mean[2] = fma(-coefficient[2].value, t[1], fma(-coefficient[1].value, t[0], from_mean[2]));
  }
  for (int c = 0; c < C; ++c) {
    const LogisticMass<F> p = LogisticMass<F>::template of<kGradient>(t[c], from_mean[c], load(at.log_scale(c, k)));
    result.fall = c == 0 ? p.fall : result.fall + p.fall;
    result.factor = c == 0 ? p.factor : result.factor * p.factor;
    if constexpr (kGradient) {
      result.by_mean[c] = p.by_mean;
      result.by_log_scale[c] = p.by_log_scale;
    }
  }
  if constexpr (kGradient && C == 3) {
    result.by_coefficient[0] = result.by_mean[1] * t[0] * coefficient[0].slope;
    result.by_coefficient[1] = result.by_mean[2] * t[0] * coefficient[1].slope;
    result.by_coefficient[2] = result.by_mean[2] * t[1] * coefficient[2].slope;
  }
  return result;
}

// The sums over components that the nll is made of: Σ exp(logit), of logits relative to the largest one, and
// Σ exp(logit)·p = exp(largest)·joint, kept in range with one exponential a term.
template <class F> struct MixtureSums {
  F largest_logit, prior, largest, joint;

  template <class Load> VAE_FAST_FN MixtureSums(int components, Load load) {
    largest_logit = load(0);
    for (int k = 1; k < components; ++k) largest_logit = maximum(largest_logit, load(k));
    prior = joint = splat<F>(0.0f);
    largest = splat<F>(-kLargest);
  }
  // Call for every component in turn.
  VAE_FAST_FN void add(F logit, F fall, F factor) {
    const F relative = logit - largest_logit, x = relative - fall, e = exp_nonpositive(-absolute(x - largest));
    const auto larger = x > largest;
    prior = prior + exp_nonpositive(relative);
    joint = fma(select(larger, joint, factor), e, select(larger, factor, joint));
    largest = select(larger, x, largest);
  }
  VAE_FAST_FN F nll() const {
    const F one = splat<F>(1.0f);
    // NaN passes, not through log(). A joint of 0 is one below exp(-kLargest).
    const F log_joint = select(joint == splat<F>(0.0f), splat<F>(-kInfinity), largest + log1p(joint - one, joint).value);
    return log1p(prior - one, prior).value - log_joint;
  }
};

// The probabilities of a component before and after the pixel was seen, from finished sums. The nll's derivative by the
// component's logit is prior - posterior, by its other parameters posterior times that of the component's own -log p.
template <class F> struct MixtureWeights {
  F largest_logit, largest, inverse_prior, inverse_joint;

  VAE_FAST_FN explicit MixtureWeights(const MixtureSums<F>& sums)
      : largest_logit(sums.largest_logit), largest(sums.largest), inverse_prior(divide(splat<F>(1.0f), sums.prior)),
        inverse_joint(divide(splat<F>(1.0f), sums.joint)) {}
  VAE_FAST_FN F prior(F logit) const { return exp_nonpositive(logit - largest_logit) * inverse_prior; }
  VAE_FAST_FN F posterior(F logit, F fall, F factor) const {
    return exp_nonpositive((logit - largest_logit) - fall - largest) * (factor * inverse_joint);
  }
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

template <int C, class F, class Load> VAE_FAST_FN MixtureSums<F> mixture_sums(const F* t, int components, Load load) {
  const MixtureLayout<C> at{components};
  MixtureSums<F> sums(components, load);
  for (int k = 0; k < components; ++k) {
    const MixtureComponent<F, C> component = mixture_component<C, false>(t, at, k, load);
    sums.add(load(at.logit(k)), component.fall, component.factor);
  }
  return sums;
}

// -log p of a pixel.
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
    const F logit = load(at.logit(k)), posterior = weights.posterior(logit, component.fall, component.factor);
    mixture_store<C>(at, k, weights.prior(logit), posterior, component, store);
  }
}

VAE_FAST_NAMESPACE_END
