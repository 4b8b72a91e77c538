// Blocks of a View in and out of dense float32 buffers (tensor_view.h says why).
#pragma once

#include "../simd/convert.h"
#include "../../api/tensor_view.h"

VAE_FAST_NAMESPACE_BEGIN

// The elements [column, column + columns) of the samples [row, row + rows); columns is the whole sample if rows > 1.
struct Block {
  std::int64_t row, rows, column, columns;
  std::int64_t size() const { return rows * columns; }
};

struct alignas(64) Buffer { float data[kBlock]; };

VAE_FAST_FN bool in_place(const View& view, const Block& block) {
  return view.dtype == DType::float32 && view.dense_row() && (block.rows == 1 || view.row_stride == block.columns);
}

// Calls body(memory offset, stride, count, block offset) for every run of elements with one stride.
template <class Body> VAE_FAST_FN void for_each_run(const View& view, const Block& block, Body body) {
  for (std::int64_t r = 0; r < block.rows; ++r) {
    const std::int64_t row_offset = (block.row + r) * view.row_stride, out = r * block.columns;
    if (view.dims <= 1) {
      const std::int64_t stride = view.dims == 0 ? 0 : view.stride[0];
      body(row_offset + block.column * stride, stride, block.columns, out);
      continue;
    }
    const int last = view.dims - 1;
    for (std::int64_t done = 0; done < block.columns;) {
      std::int64_t index = block.column + done, offset = row_offset;
      const std::int64_t inner = index % view.size[last];
      index /= view.size[last];
      for (int d = last - 1; d >= 0; --d) {
        offset += index % view.size[d] * view.stride[d];
        index /= view.size[d];
      }
      const std::int64_t rest = view.size[last] - inner, wanted = block.columns - done;
      const std::int64_t count = rest < wanted ? rest : wanted;
      body(offset + inner * view.stride[last], view.stride[last], count, out + done);
      done += count;
    }
  }
}

template <class T> VAE_FAST_FN void gather(const T* p, std::int64_t stride, std::int64_t n, float* out) {
  if (stride == 1) return load_run(p, n, out);
  if (stride == 0) {
    const float value = load_one(p);
    for (std::int64_t i = 0; i < n; ++i) out[i] = value;
    return;
  }
  for (std::int64_t i = 0; i < n; ++i) out[i] = load_one(p + i * stride);
}
template <class T> VAE_FAST_FN void scatter(const float* in, std::int64_t n, T* p, std::int64_t stride) {
  if (stride == 1) return store_run(in, n, p);
  for (std::int64_t i = 0; i < n; ++i) store_one(in[i], p + i * stride);
}

// The block as dense float32, in `out`.
inline void copy_in(const View& view, const Block& block, float* out) {
  for_each_run(view, block, [&](std::int64_t offset, std::int64_t stride, std::int64_t count, std::int64_t at) {
    float* to = out + at;
    switch (view.dtype) {
      case DType::float32: return gather(reinterpret_cast<const float*>(view.data) + offset, stride, count, to);
      case DType::bfloat16: return gather(reinterpret_cast<const bfloat16*>(view.data) + offset, stride, count, to);
      case DType::float16: return gather(reinterpret_cast<const float16*>(view.data) + offset, stride, count, to);
      case DType::uint8: return gather(reinterpret_cast<const std::uint8_t*>(view.data) + offset, stride, count, to);
      case DType::boolean: return gather(reinterpret_cast<const boolean*>(view.data) + offset, stride, count, to);
      case DType::count8: return gather(reinterpret_cast<const count8*>(view.data) + offset, stride, count, to);
      case DType::int16: return gather(reinterpret_cast<const std::int16_t*>(view.data) + offset, stride, count, to);
      case DType::uint16: return gather(reinterpret_cast<const std::uint16_t*>(view.data) + offset, stride, count, to);
      case DType::int32: return gather(reinterpret_cast<const std::int32_t*>(view.data) + offset, stride, count, to);
      case DType::int64: return gather(reinterpret_cast<const std::int64_t*>(view.data) + offset, stride, count, to);
    }
  });
}

// The same: the tensor's own memory where that is what it is, else a copy in `buffer`.
inline const float* read(const View& view, const Block& block, Buffer& buffer) {
  if (in_place(view, block))
    return reinterpret_cast<const float*>(view.data) + block.row * view.row_stride + block.column;
  copy_in(view, block, buffer.data);
  return buffer.data;
}

// A dense block of float32 into the tensor.
inline void copy_out(const View& view, const Block& block, const float* from) {
  for_each_run(view, block, [&](std::int64_t offset, std::int64_t stride, std::int64_t count, std::int64_t in) {
    switch (view.dtype) {
      case DType::bfloat16: return scatter(from + in, count, reinterpret_cast<bfloat16*>(view.data) + offset, stride);
      case DType::float16: return scatter(from + in, count, reinterpret_cast<float16*>(view.data) + offset, stride);
      default: return scatter(from + in, count, reinterpret_cast<float*>(view.data) + offset, stride);
    }
  });
}

// Where to put the block's results, and their way from there into the tensor.
inline float* destination(const View& view, const Block& block, Buffer& buffer) {
  return in_place(view, block) ? reinterpret_cast<float*>(view.data) + block.row * view.row_stride + block.column
                               : buffer.data;
}
inline void write(const View& view, const Block& block, const float* from) {
  if (!in_place(view, block)) copy_out(view, block, from);
}

VAE_FAST_NAMESPACE_END
