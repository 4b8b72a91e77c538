// Counts are mostly zeros, which are cheap, but hardly a vector of them is without a count, which is not. So the counts of a
// block are collected into full vectors, and the zeros are left where they are.
#pragma once

#include "../../formulas/likelihoods/counts.h"
#include "../simd/vector_pair.h"
#include "csr.h"

VAE_FAST_NAMESPACE_BEGIN

// Which of the block x[0..n) count anything.
struct NonzeroIndex {
  std::int32_t index[kBlock + kLanes];
  std::int64_t count = 0;

  VAE_FAST_FN NonzeroIndex(const float* x, std::int64_t n) {
    for_each_vector(n, [&](std::int64_t i, int lanes) VAE_FAST_LAMBDA {
      const unsigned counted = Lanes<vf32>::bits(is_counted(load_partial(x + i, lanes)));
      for (int lane = 0; lane < kLanes; ++lane) {  // no branch, which would be mispredicted as often as not
        index[count] = static_cast<std::int32_t>(i) + lane;
        count += counted >> lane & 1u;
      }
    });
  }

  // The same of a sparse target: target[index[i]] is then the only part of `target` that is written.
  VAE_FAST_FN NonzeroIndex(CsrReader& reader, const Block& block, const Task& task, std::int64_t columns, float* target) {
    const std::int64_t stored = reader.read(block, block.row, task.column_begin, task.column_end, columns, index, target);
    for (std::int64_t i = 0; i < stored; ++i) {
      index[count] = index[i];
      count += is_counted(target[index[i]]);
    }
  }
};

// The elements of p at some indices, 1 in the lanes beyond `count`: a number that no formula minds.
VAE_FAST_FN vf32 gather_as(const float* p, const std::int32_t* index, int count, vf32) {
  vf32 v = splat<vf32>(1.0f);
  if (__builtin_expect(count == kLanes, 1))
    for (int lane = 0; lane < kLanes; ++lane) v[lane] = p[index[lane]];
  else
    for (int lane = 0; lane < count; ++lane) v[lane] = p[index[lane]];
  return v;
}
VAE_FAST_FN VectorPair<vf32> gather_as(const float* p, const std::int32_t* index, int, VectorPair<vf32>) {
  return {gather_as(p, index, kLanes, vf32{}), gather_as(p, index + kLanes, kLanes, vf32{})};
}
VAE_FAST_FN void scatter_as(vf32 v, float* p, const std::int32_t* index, int count) {
  float lanes[kLanes];
  store(lanes, v);
  for (int lane = 0; lane < count; ++lane) p[index[lane]] = lanes[lane];
}
VAE_FAST_FN void scatter_as(VectorPair<vf32> v, float* p, const std::int32_t* index, int) {
  scatter_as(v.a, p, index, kLanes);
  scatter_as(v.b, p, index + kLanes, kLanes);
}

VAE_FAST_NAMESPACE_END
