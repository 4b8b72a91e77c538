// The arithmetic of kernels whose tensors have 16 bits.
#pragma once

#include "portable.h"

VAE_FAST_NAMESPACE_BEGIN

// A float whose functions are good to about 2^-20: enough for results of 16-bit tensors, which are rounded to 2^-9 or
// 2^-12, at half the instructions. Formulas take it for F; approximate.h has those of its functions that are shorter than
// float's.
struct Rough {
  float value;
  Rough() = default;
  VAE_FAST_FN Rough(float v) : value(v) {}
};
VAE_FAST_FN float value(Rough x) { return x.value; }
VAE_FAST_FN float value(float x) { return x; }
VAE_FAST_FN Rough operator+(Rough a, Rough b) { return a.value + b.value; }
VAE_FAST_FN Rough operator-(Rough a, Rough b) { return a.value - b.value; }
VAE_FAST_FN Rough operator*(Rough a, Rough b) { return a.value * b.value; }
VAE_FAST_FN Rough operator-(Rough a) { return -a.value; }
VAE_FAST_FN bool operator<(Rough a, Rough b) { return a.value < b.value; }
VAE_FAST_FN bool operator>(Rough a, Rough b) { return a.value > b.value; }
VAE_FAST_FN bool operator<=(Rough a, Rough b) { return a.value <= b.value; }
VAE_FAST_FN bool operator>=(Rough a, Rough b) { return a.value >= b.value; }
VAE_FAST_FN bool operator==(Rough a, Rough b) { return a.value == b.value; }

template <> struct Lanes<Rough> {
  using u32 = std::uint32_t;
  using i32 = std::int32_t;
  static VAE_FAST_FN Rough splat(float x) { return x; }
  static VAE_FAST_FN Rough to_float(i32 i) { return static_cast<float>(i); }
  static VAE_FAST_FN bool any(bool mask) { return mask; }
  static VAE_FAST_FN Rough fma(Rough a, Rough b, Rough c) { return Lanes<float>::fma(a.value, b.value, c.value); }
  static VAE_FAST_FN Rough maximum(Rough bound, Rough x) { return Lanes<float>::maximum(bound.value, x.value); }
  static VAE_FAST_FN Rough minimum(Rough bound, Rough x) { return Lanes<float>::minimum(bound.value, x.value); }
};

// Horner's rule, which needs no square: on a GPU other warps hide its latency.
VAE_FAST_FN Rough polynomial(Rough, float c0) { return c0; }
template <class... C> VAE_FAST_FN Rough polynomial(Rough x, float c0, float c1, C... higher) {
  return fma(polynomial(x, c1, higher...), x, Rough(c0));
}

VAE_FAST_NAMESPACE_END
