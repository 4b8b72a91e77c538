// How a kernel reads and writes its tensors: decided on the host, once a launch.
//
// A kernel is compiled three times, not once per combination of dtypes and layouts. Alignment and strides decide which
// of the three; the dtype of a tensor is looked at in the kernel (memory.h), where all threads agree and the branch
// costs an instruction or two for 4 or 8 elements.
//   Wide   8 elements, dense: 16-bit tensors in one 128-bit access, 8-bit targets in 64 bits
//   Narrow 4 elements, dense: float32 in one 128-bit access, 16-bit tensors in 64 bits, 8-bit targets in 32
//   Any    4 elements one by one: any strides, any alignment, rows of any length
// A tensor that is constant along its rows (stride 0) fits all of them. Kernels with a prior or with sums over the batch
// have no Wide form: its registers would leave a processor with a single block.
#pragma once

#include "../math/portable.h"
#include "grid.h"

namespace vae_fast {

template <int kSize, bool kDense> struct Access {
  static constexpr int size = kSize;
  static constexpr bool dense = kDense;
};
using Wide = Access<8, true>;
using Narrow = Access<4, true>;
using Any = Access<4, false>;
enum class AccessKind { wide, narrow, any };

VAE_FAST_FN bool constant_row(const View& v) { return v.dims == 0 || (v.dims == 1 && v.stride[0] == 0); }

inline bool fits(const View& v, int size, std::int64_t rows, std::int64_t draws) {
  if (!v || constant_row(v)) return true;
  const std::int64_t bytes = size * v.item_size(), alignment = std::min<std::int64_t>(bytes, 16);
  if (bytes > (v.dtype == DType::int64 ? 32 : 16)) return false;
  const auto aligned = [&](std::int64_t stride) { return stride * v.item_size() % alignment == 0; };
  return v.dense_row() && reinterpret_cast<std::uintptr_t>(v.data) % alignment == 0 && (rows <= 1 || aligned(v.row_stride)) &&
         (draws <= 1 || aligned(v.draw_stride));
}

// `draws`: of those tensors that have them; the others have a draw_stride of 0.
template <std::size_t n>
AccessKind choose_access(const View* const (&views)[n], std::int64_t rows, std::int64_t columns, std::int64_t draws,
                         bool may_be_wide = true) {
  bool wide = may_be_wide && columns % 8 == 0, narrow = columns % 4 == 0, has_16_bits = false;
  for (const View* v : views) {
    wide = wide && fits(*v, 8, rows, draws);
    narrow = narrow && fits(*v, 4, rows, draws);
    has_16_bits = has_16_bits || (*v && v->item_size() == 2 && !constant_row(*v));
  }
  if (wide && has_16_bits) return AccessKind::wide;
  return narrow ? AccessKind::narrow : AccessKind::any;
}

constexpr int chunk_size(AccessKind kind) { return kind == AccessKind::wide ? 8 : 4; }

// Calls body(Access{}) for the kind, or for narrow and any alone.
template <class Body> void with_narrow_access(AccessKind kind, Body body) {
  if (kind == AccessKind::narrow) body(Narrow{});
  else body(Any{});
}
template <class Body> void with_access(AccessKind kind, Body body) {
  if (kind == AccessKind::wide) body(Wide{});
  else with_narrow_access(kind, body);
}

// Where the first dimension of a sample is the fast one in memory (channels-last), threads side by side take the same
// chunk of neighbouring channels: a row is `runs` channels of `run_chunks` chunks. Each thread still has four
// neighbours in the order that the noise counts.
template <std::size_t n> void follow_memory(Grid& grid, AccessKind kind, const View* const (&views)[n]) {
  if (kind != AccessKind::any) return;
  const auto distance = [](std::int64_t stride) { return stride < 0 ? -stride : stride; };
  for (const View* v : views) {
    if (!*v || v->dims < 2) continue;
    if (v->dims == 2 && v->stride[0] != 0 && distance(v->stride[0]) < distance(v->stride[1]) && v->size[1] % Any::size == 0) {
      grid.runs = v->size[0];
      grid.run_chunks = v->size[1] / Any::size;
    }
    return;
  }
}

}  // namespace vae_fast
