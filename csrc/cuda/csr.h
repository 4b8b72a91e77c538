// A chunk of a target of counts in CSR form: found among what its row has stored by a search for its first column.
#pragma once

#include "memory.h"

namespace vae_fast {

// The chunks of a row share out the proof that its columns ascend and lie in the row: a column that does not follow the one
// before makes a count of NaN.
template <int kSize>
VAE_FAST_DEVICE void load_csr(const CsrIndex& csr, const View& values, std::int64_t row, std::int64_t columns, std::int64_t column,
                              int count, float (&out)[kSize]) {
  const std::int64_t begin = csr.begin(row), end = csr.begin(row + 1);
#pragma unroll
  for (int i = 0; i < kSize; ++i) out[i] = 0.0f;
#pragma unroll 1
  for (std::int64_t at = csr.find(begin, end, column); at < end; ++at) {
    const std::int64_t place = csr.column(at) - column;
    if (place < 0 || place >= count) break;
    const float x = values.dtype == DType::uint16 ? static_cast<float>(reinterpret_cast<const std::uint16_t*>(values.data)[at])
                                                  : element_at<Content::targets>(values.data, values.dtype, at);
#pragma unroll
    for (int i = 0; i < kSize; ++i)
      if (place == i) out[i] = x;
  }
#pragma unroll 1
  for (std::int64_t at = begin + column / kSize; at < end; at += (columns + kSize - 1) / kSize) {
    const std::int64_t here = csr.column(at), before = at == begin ? -1 : csr.column(at - 1);
    if (here <= before || here >= columns) out[0] = kNaN;
  }
}

}  // namespace vae_fast
