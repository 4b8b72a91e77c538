// A View3 as the rows that block_io.h reads and writes: along its last dimension, or along its middle one.
#pragma once

#include "../../api/arguments.h"
#include "block_io.h"

VAE_FAST_NAMESPACE_BEGIN

VAE_FAST_FN View view_of(const View3& t, std::int64_t sample, int row, int column, std::int64_t columns) {
  View v;
  v.dtype = t.dtype;
  v.data = t.data + sample * t.stride[0] * size_of(t.dtype);
  v.row_stride = t.stride[row];
  v.dims = 1;
  v.size[0] = columns;
  v.stride[0] = t.stride[column];
  return v;
}

// Row r is t[sample, r, :], of the length given.
VAE_FAST_FN View along_last(const View3& t, std::int64_t sample, std::int64_t length) { return view_of(t, sample, 1, 2, length); }
// Row r is t[sample, :, r].
VAE_FAST_FN View along_middle(const View3& t, std::int64_t sample, std::int64_t length) { return view_of(t, sample, 2, 1, length); }

VAE_FAST_NAMESPACE_END
