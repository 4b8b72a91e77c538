// What the kernels' loops share: the blocks of a task, per-sample sums, summed gradients.
#pragma once

#include <type_traits>

#include "../../api/arguments.h"
#include "block_io.h"

VAE_FAST_NAMESPACE_BEGIN

template <class Body> VAE_FAST_FN void for_each_block(const Tiling& tiling, const Task& task, Body body) {
  for (std::int64_t row = task.row_begin; row < task.row_end; row += tiling.rows_per_block) {
    const std::int64_t left = task.row_end - row, rows = left < tiling.rows_per_block ? left : tiling.rows_per_block;
    for (std::int64_t column = task.column_begin; column < task.column_end; column += kBlock) {
      const std::int64_t rest = task.column_end - column;
      body(Block{row, rows, column, rest < kBlock ? rest : kBlock});
    }
  }
}

// Adds up the terms of each sample: float32 in a block's 16 lanes, float64 from block to block. Or writes them as they are.
class Losses {
 public:
  VAE_FAST_FN Losses(const Loss& out, const Tiling& tiling, const Task& task) : out_(out), tiling_(tiling), task_(task) {}

  VAE_FAST_FN void add(const Block& block, const float* terms) {
    if (out_.elements) return copy_out(out_.elements, block, terms);
    if (tiling_.rows_per_block > 1) {
      for (std::int64_t r = 0; r < block.rows; ++r)
        out_.value[(block.row + r) * out_.stride] = sum(terms + r * block.columns, block.columns);
      return;
    }
    add(block, sum(terms, block.columns));
  }

  // The same where a block is of one sample, from the sum of its terms.
  VAE_FAST_FN void add(const Block& block, float terms) {
    total_ += terms;
    if (block.column + block.columns < task_.column_end) return;
    if (out_.partial) out_.partial[block.row * tiling_.column_segments + task_.segment] = total_;
    else out_.value[block.row * out_.stride] = static_cast<float>(total_);
    total_ = 0;
  }

 private:
  const Loss& out_;
  const Tiling& tiling_;
  const Task& task_;
  double total_ = 0;
};

// What comes from above for each element of the block.
VAE_FAST_FN const float* read(const Upstream& upstream, const Block& block, Buffer& buffer) {
  if (upstream.elements) return read(upstream.elements, block, buffer);
  for (std::int64_t r = 0; r < block.rows; ++r) {
    const float value = upstream.value[(block.row + r) * upstream.stride];
    float* to = buffer.data + r * block.columns;
    for (std::int64_t c = 0; c < block.columns; ++c) to[c] = value;
  }
  return buffer.data;
}

// Formulas are shorter where a logarithm of a scale lies within ±far, as in nearly every block. They come first, in
// pass(std::true_type{}), which returns the largest size that it saw; the block that goes beyond is computed once more.
template <class Pass> VAE_FAST_FN void near_then_far(float far, Pass pass) {
  if (__builtin_expect(any<vf32>(pass(std::true_type{}) > splat<vf32>(far)), 0)) pass(std::false_type{});
}

// A block's gradient values go to gradient_destination, then emit puts them where they belong.
inline bool wanted(const Gradient& gradient) { return static_cast<bool>(gradient.view); }
inline float* gradient_destination(const Gradient& gradient, const Block& block, Buffer& buffer) {
  return wanted(gradient) && gradient.reduction == Reduction::none ? destination(gradient.view, block, buffer) : buffer.data;
}
inline void emit(const Gradient& gradient, const Tiling& tiling, const Task& task, const Block& block,
                 const float* values) {
  switch (gradient.reduction) {
    case Reduction::none:
      return write(gradient.view, block, values);
    case Reduction::draws: {  // not the first of them: onto what is there
      Buffer sums;
      copy_in(gradient.view, block, sums.data);
      for (std::int64_t i = 0; i < block.size(); ++i) sums.data[i] += values[i];
      return copy_out(gradient.view, block, sums.data);
    }
    case Reduction::batch: {
      double* partial = gradient.partial + task.group * tiling.columns + block.column;
      for (std::int64_t r = 0; r < block.rows; ++r)
        for (std::int64_t c = 0; c < block.columns; ++c) partial[c] += values[r * block.columns + c];
      return;
    }
    case Reduction::all:
      gradient.partial[task.group * tiling.column_segments + task.segment] += sum(values, block.size());
  }
}

VAE_FAST_NAMESPACE_END
