// The arithmetic of a GPU's thread.
#pragma once

#include "portable.h"

VAE_FAST_NAMESPACE_BEGIN

// A float whose functions use the approximations; formulas take it for F. What is not shorter by them is as for float.
//   Rough  good to about 2^-20: enough for results of 16-bit tensors, which are rounded to 2^-9 or 2^-12
//   Full   to float32's contracts: an approximation stands where it adds a small term, or where its error is absolute
//          and the result is not small
template <bool kFull> struct Approximate {
  float value;
  Approximate() = default;
  VAE_FAST_FN Approximate(float v) : value(v) {}
  friend VAE_FAST_FN Approximate operator+(Approximate a, Approximate b) { return a.value + b.value; }
  friend VAE_FAST_FN Approximate operator-(Approximate a, Approximate b) { return a.value - b.value; }
  friend VAE_FAST_FN Approximate operator*(Approximate a, Approximate b) { return a.value * b.value; }
  friend VAE_FAST_FN Approximate operator-(Approximate a) { return -a.value; }
  friend VAE_FAST_FN bool operator<(Approximate a, Approximate b) { return a.value < b.value; }
  friend VAE_FAST_FN bool operator>(Approximate a, Approximate b) { return a.value > b.value; }
  friend VAE_FAST_FN bool operator<=(Approximate a, Approximate b) { return a.value <= b.value; }
  friend VAE_FAST_FN bool operator>=(Approximate a, Approximate b) { return a.value >= b.value; }
  friend VAE_FAST_FN bool operator==(Approximate a, Approximate b) { return a.value == b.value; }
  friend VAE_FAST_FN bool operator!=(Approximate a, Approximate b) { return a.value != b.value; }
};
using Rough = Approximate<false>;
using Full = Approximate<true>;
template <bool kFull> VAE_FAST_FN float value(Approximate<kFull> x) { return x.value; }
VAE_FAST_FN float value(float x) { return x; }

template <bool kFull> struct Lanes<Approximate<kFull>> {
  using F = Approximate<kFull>;
  using u32 = std::uint32_t;
  using i32 = std::int32_t;
  static VAE_FAST_FN F splat(float x) { return x; }
  static VAE_FAST_FN F to_float(i32 i) { return static_cast<float>(i); }
  static VAE_FAST_FN bool any(bool mask) { return mask; }
  static VAE_FAST_FN bool any_negative(i32 bits) { return bits < 0; }
  static VAE_FAST_FN F fma(F a, F b, F c) { return Lanes<float>::fma(a.value, b.value, c.value); }
  static VAE_FAST_FN F maximum(F bound, F x) { return Lanes<float>::maximum(bound.value, x.value); }
  static VAE_FAST_FN F minimum(F bound, F x) { return Lanes<float>::minimum(bound.value, x.value); }
};

// Horner's rule, which needs no square: on a GPU other warps hide its latency.
template <bool kFull> VAE_FAST_FN Approximate<kFull> polynomial(Approximate<kFull>, float c0) { return c0; }
template <bool kFull, class... C>
VAE_FAST_FN Approximate<kFull> polynomial(Approximate<kFull> x, float c0, float c1, C... higher) {
  return fma(polynomial(x, c1, higher...), x, Approximate<kFull>(c0));
}
template <bool kFull, class... C>
VAE_FAST_FN Approximate<kFull> polynomial(Approximate<kFull> x, Approximate<kFull>, float c0, float c1, C... higher) {
  return polynomial(x, c0, c1, higher...);
}

VAE_FAST_NAMESPACE_END
