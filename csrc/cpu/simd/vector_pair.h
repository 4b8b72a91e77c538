// Two vectors as one F: what is computed of one waits for its own result before, the other's instructions fill the wait.
// For math whose chain of dependent instructions is longer than a processor looks ahead.
#pragma once

#include "vector.h"

VAE_FAST_NAMESPACE_BEGIN

template <class V> struct VectorPair { V a, b; };

#define VAE_FAST_TWICE(op)                                                                                        \
  template <class V> VAE_FAST_FN auto operator op(VectorPair<V> x, VectorPair<V> y) -> VectorPair<decltype(x.a op y.a)> {        \
    return {x.a op y.a, x.b op y.b};                                                                              \
  }                                                                                                               \
  template <class V, class S> VAE_FAST_FN auto operator op(VectorPair<V> x, S y) -> VectorPair<decltype(x.a op y)> {        \
    return {x.a op y, x.b op y};                                                                                  \
  }
VAE_FAST_TWICE(+) VAE_FAST_TWICE(-) VAE_FAST_TWICE(*) VAE_FAST_TWICE(/) VAE_FAST_TWICE(&) VAE_FAST_TWICE(|) VAE_FAST_TWICE(^)
VAE_FAST_TWICE(<<) VAE_FAST_TWICE(>>) VAE_FAST_TWICE(<) VAE_FAST_TWICE(>) VAE_FAST_TWICE(>=) VAE_FAST_TWICE(==) VAE_FAST_TWICE(!=)
#undef VAE_FAST_TWICE
template <class V> VAE_FAST_FN VectorPair<V> operator-(VectorPair<V> x) { return {-x.a, -x.b}; }
template <class T> VAE_FAST_FN VectorPair<T> select(VectorPair<vi32> mask, VectorPair<T> x, VectorPair<T> y) {
  return {select(mask.a, x.a, y.a), select(mask.b, x.b, y.b)};
}

template <> struct Lanes<VectorPair<vf32>> {
  using F = VectorPair<vf32>;
  using L = Lanes<vf32>;
  using u32 = VectorPair<vu32>;
  using i32 = VectorPair<vi32>;

  static VAE_FAST_FN F splat(float x) { return {L::splat(x), L::splat(x)}; }
  static VAE_FAST_FN F to_float(i32 i) { return {L::to_float(i.a), L::to_float(i.b)}; }
  static VAE_FAST_FN F fma(F x, F y, F z) { return {L::fma(x.a, y.a, z.a), L::fma(x.b, y.b, z.b)}; }
  static VAE_FAST_FN F maximum(F bound, F x) { return {L::maximum(bound.a, x.a), L::maximum(bound.b, x.b)}; }
  static VAE_FAST_FN F minimum(F bound, F x) { return {L::minimum(bound.a, x.a), L::minimum(bound.b, x.b)}; }
  static VAE_FAST_FN bool any(i32 mask) { return L::any(mask.a | mask.b); }
  static VAE_FAST_FN bool any_negative(i32 x) { return L::any_negative(x.a | x.b); }
  static VAE_FAST_FN F sqrt(F x) { return {L::sqrt(x.a), L::sqrt(x.b)}; }
};

// Loads, stores and loops of an F that is one vector or two; of two, count is always 2·kLanes.
VAE_FAST_FN vf32 load_as(const float* p, int count, vf32) { return load_partial(p, count); }
VAE_FAST_FN VectorPair<vf32> load_as(const float* p, int, VectorPair<vf32>) { return {load<vf32>(p), load<vf32>(p + kLanes)}; }
VAE_FAST_FN void store_as(float* p, vf32 v, int count) { store_partial(p, v, count); }
VAE_FAST_FN void store_as(float* p, VectorPair<vf32> v, int) { store(p, v.a), store(p + kLanes, v.b); }

// body(i, count, F{}) over [0, n), two vectors at once as long as there are two.
template <class Body> VAE_FAST_FN void for_each_two_vectors(std::int64_t n, Body body) {
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) body(i, 2 * kLanes, VectorPair<vf32>{});
  for (; i < n; i += kLanes) body(i, n - i < kLanes ? static_cast<int>(n - i) : kLanes, vf32{});
}

VAE_FAST_NAMESPACE_END
