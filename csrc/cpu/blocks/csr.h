// The stored counts of a block, from a sparse target: they are read, and nothing is read of the others.
#pragma once

#include "blocks.h"

VAE_FAST_NAMESPACE_BEGIN

// Goes through the blocks of a task in their order. Of every row it sees that the columns ascend, lie in the row, and are
// all met: where not, a block has a count of NaN.
class CsrReader {
 public:
  VAE_FAST_FN CsrReader(const CsrIndex& csr, const View& values) : csr_(csr) {
    values_.data = values.data;
    values_.dtype = values.dtype;
    values_.dims = 1;
    values_.stride[0] = 1;
  }

  // Where in the block what is stored is, in `index`, and its values there in `target`; returns how many there are. The
  // rows of the block are those from `row` on. [first, end): the columns of the task, `columns`: of a row.
  std::int64_t read(const Block& block, std::int64_t row, std::int64_t first, std::int64_t end, std::int64_t columns,
                    std::int32_t* index, float* target) {
    std::int64_t found = 0;
    for (std::int64_t r = 0; r < block.rows; ++r) {
      const std::int64_t begin = csr_.begin(row + r), stop = csr_.begin(row + r + 1), limit = block.column + block.columns;
      if (block.column == first) at_ = first == 0 ? begin : csr_.find(begin, stop, first);
      std::int64_t i = at_, last = block.column - 1;
      std::int32_t* of_row = index + found;
      for (; i < stop; ++i) {
        const std::int64_t column = csr_.column(i);
        if (column >= limit) break;
        if (column <= last) { i = -1; break; }
        *of_row++ = static_cast<std::int32_t>(r * block.columns + (column - block.column));
        last = column;
      }
      if (limit == end && i >= 0 && i != (end == columns ? stop : csr_.find(begin, stop, end))) i = -1;
      if (i < 0) {  // no such row
        index[found] = static_cast<std::int32_t>(r * block.columns);
        target[index[found++]] = kNaN;
        at_ = stop;
        continue;
      }
      if (const std::int64_t count = i - at_; count > 0) {
        Buffer buffer;
        const float* values = VAE_FAST_ISA::read(values_, Block{0, 1, at_, count}, buffer);
        for (std::int64_t k = 0; k < count; ++k) target[index[found + k]] = values[k];
        found += count;
      }
      at_ = i;
    }
    return found;
  }

 private:
  const CsrIndex csr_;
  View values_;
  std::int64_t at_ = 0;
};

VAE_FAST_NAMESPACE_END
