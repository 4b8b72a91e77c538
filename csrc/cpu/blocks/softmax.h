// What the op `categorical` does once for every position: its target's class, and the results from finished sums.
#pragma once

#include <cmath>

#include "../../math/elementary.h"
#include "view3_rows.h"

VAE_FAST_NAMESPACE_BEGIN

constexpr double kLowest = -kLargest;  // below every logit but -inf, and finite: -inf minus itself is NaN

inline void add(SoftmaxSums& sums, const SoftmaxSums& other) {
  const double largest = sums.largest < other.largest ? other.largest : sums.largest;
  const auto scaled = [largest](const SoftmaxSums& s) -> SoftmaxSums {
    if (s.largest == largest) return s;
    const double down = s.largest - largest;
    return {largest, s.exponentials * std::exp(down), s.weighted + s.total * down, s.total};
  };
  const SoftmaxSums a = scaled(sums), b = scaled(other);
  sums = {largest, a.exponentials + b.exponentials, a.weighted + b.weighted, a.total + b.total};
}

// The class number of a position. One below 0 or beyond the classes, unless it is kIgnored, makes the result NaN.
inline std::int64_t class_at(const View3& target, std::int64_t sample, std::int64_t position) {
  const std::int64_t offset = sample * target.stride[0] + position * target.stride[1];
  switch (target.dtype) {
    case DType::uint8: case DType::count8: return reinterpret_cast<const std::uint8_t*>(target.data)[offset];
    case DType::int16: return reinterpret_cast<const std::int16_t*>(target.data)[offset];
    case DType::int32: return reinterpret_cast<const std::int32_t*>(target.data)[offset];
    case DType::int64: return reinterpret_cast<const std::int64_t*>(target.data)[offset];
    default: return -1;
  }
}
inline bool is_class(std::int64_t number, std::int64_t classes) { return number >= 0 && number < classes; }

inline float logit_at(const View3& logits, std::int64_t sample, std::int64_t position, std::int64_t number) {
  const std::int64_t offset = sample * logits.stride[0] + position * logits.stride[1] + number * logits.stride[2];
  switch (logits.dtype) {
    case DType::bfloat16: return load_one(reinterpret_cast<const bfloat16*>(logits.data) + offset);
    case DType::float16: return load_one(reinterpret_cast<const float16*>(logits.data) + offset);
    default: return load_one(reinterpret_cast<const float*>(logits.data) + offset);
  }
}

// nll = n·log Σ exp(l - m) - Σ x·(l - m): with the largest logit m taken off there is nothing left to cancel.
inline void finish(const CategoricalForward& a, std::int64_t sample, std::int64_t position, SoftmaxSums sums) {
  const std::int64_t at = sample * a.positions + position;
  bool ignored = false;
  if (!a.counts) {
    const std::int64_t number = class_at(a.target, sample, position);
    ignored = number == kIgnored;
    const bool known = is_class(number, a.classes);
    sums.total = ignored ? 0.0 : known ? 1.0 : NAN;
    sums.weighted = known ? logit_at(a.logits, sample, position, number) - sums.largest : 0.0;
  }
  const double log_sum = std::log(sums.exponentials), lse = sums.largest + log_sum;
  a.nll[at] = ignored ? 0.0f : static_cast<float>(sums.total * log_sum - sums.weighted);
  a.lse[at] = static_cast<float>(lse);
  // total·exp(l - lse) loses nothing to lse's rounding if total has the factor that makes up for it.
  a.total[at] = ignored ? 0.0f : static_cast<float>(sums.total * std::exp((a.lse[at] - sums.largest) - log_sum));
}

VAE_FAST_NAMESPACE_END
