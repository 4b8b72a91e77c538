// How a kernel reads and writes its tensors: decided on the host, once a launch.
//
// A kernel is compiled for the common cases and once for everything else, not for every combination of dtypes and
// layouts:
//   Plain<dtype>  float32 in 4 elements or 16 bits in 8, one 128-bit access a tensor: all tensors of numbers are dense and
//                 of one dtype, and what the kernel may be asked for besides, it is not (`plain` in its run function)
//   Wide          8 elements, dense: 16-bit tensors in one 128-bit access, 8-bit targets in 64 bits
//   Narrow        4 elements, dense: float32 in one 128-bit access, 16-bit tensors in 64 bits, 8-bit targets in 32
//   Any           4 elements one by one: any strides, any alignment, rows of any length
//   SparseTarget  the same with a target in CSR form, of counts
// In the last three the dtype of a tensor, and whether it is constant along its rows (stride 0), is looked at in the
// kernel (memory.h). All threads agree, yet in float32 these branches and the addresses between them are 19 of the 90
// instructions an element of the latent forward, and 48 of 114 backward (SASS, sm_90). Kernels with a prior or with sums
// over the batch have no form of 8 elements: its registers would leave a processor with a single block.
#pragma once

#include <type_traits>

#include "../math/approximate.h"
#include "grid.h"

namespace vae_fast {

constexpr DType kAnyDType = static_cast<DType>(-1);

template <int kSize, bool kDense, DType kDType = kAnyDType> struct Access {
  static constexpr int size = kSize;
  static constexpr bool dense = kDense, plain = kDType != kAnyDType;
  static constexpr DType dtype = kDType;
};
template <DType kDType> using Plain = Access<kDType == DType::float32 ? 4 : 8, true, kDType>;
using Wide = Access<8, true>;
using Narrow = Access<4, true>;
using Any = Access<4, false>;
struct SparseTarget : Any {};  // a target in CSR form beside tensors of any strides
template <class A> constexpr bool kIsSparse = std::is_same_v<A, SparseTarget>;
enum class AccessKind { plain_float32, plain_bfloat16, plain_float16, wide, narrow, any };

// 16-bit results round what float32 arithmetic errs by.
template <class A> using Arithmetic = std::conditional_t<A::plain && A::size == 8, Rough, float>;

VAE_FAST_FN bool constant_row(const View& v) { return v.dims == 0 || (v.dims == 1 && v.stride[0] == 0); }

inline bool fits(const View& v, int size, std::int64_t rows, std::int64_t draws) {
  if (!v || constant_row(v)) return true;
  const std::int64_t bytes = size * v.item_size(), alignment = std::min<std::int64_t>(bytes, 16);
  if (bytes > (v.dtype == DType::int64 ? 32 : 16)) return false;
  const auto aligned = [&](std::int64_t stride) { return stride * v.item_size() % alignment == 0; };
  return v.dense_row() && reinterpret_cast<std::uintptr_t>(v.data) % alignment == 0 && (rows <= 1 || aligned(v.row_stride)) &&
         (draws <= 1 || aligned(v.draw_stride));
}

// The forms that a launch may take. In a plain one those of the views may be constant that `constants` has a bit for; of
// 16 bits it has 8 elements, too, and `plain_16` says that a kernel has it without the wide one.
struct Forms { bool plain = true, wide = true; std::uint32_t constants = 0; bool plain_16 = wide; };

// `draws`: of those tensors that have them; the others have a draw_stride of 0.
template <std::size_t n>
AccessKind choose_access(const View* const (&views)[n], std::int64_t rows, std::int64_t columns, std::int64_t draws, Forms forms) {
  bool eight = columns % 8 == 0, narrow = columns % 4 == 0, has_16_bits = false;
  bool plain = forms.plain && columns <= 0x7FFFFFFF;  // Column in grid.h
  const DType dtype = (*views)->dtype;
  for (std::size_t i = 0; i < n; ++i) {
    const View* const v = views[i];
    eight = eight && fits(*v, 8, rows, draws);
    narrow = narrow && fits(*v, 4, rows, draws);
    has_16_bits = has_16_bits || (*v && v->item_size() == 2 && !constant_row(*v));
    plain = plain && (!*v || (v->dtype == dtype && (!constant_row(*v) || forms.constants >> i & 1)));
  }
  if (plain && narrow && dtype == DType::float32) return AccessKind::plain_float32;
  if (plain && eight && forms.plain_16 && dtype == DType::bfloat16) return AccessKind::plain_bfloat16;
  if (plain && eight && forms.plain_16 && dtype == DType::float16) return AccessKind::plain_float16;
  if (forms.wide && eight && has_16_bits) return AccessKind::wide;
  return narrow ? AccessKind::narrow : AccessKind::any;
}

constexpr int chunk_size(AccessKind kind) {
  return kind == AccessKind::plain_bfloat16 || kind == AccessKind::plain_float16 || kind == AccessKind::wide ? 8 : 4;
}

// Calls body(Access{}) for the kind; without kWide and kPlain16 for one that has 4 elements.
template <bool kWide, bool kPlain16 = kWide, class Body> void with_access(AccessKind kind, Body body) {
  if constexpr (kPlain16) {
    if (kind == AccessKind::plain_bfloat16) return body(Plain<DType::bfloat16>{});
    if (kind == AccessKind::plain_float16) return body(Plain<DType::float16>{});
  }
  if constexpr (kWide)
    if (kind == AccessKind::wide) return body(Wide{});
  if (kind == AccessKind::plain_float32) return body(Plain<DType::float32>{});
  if (kind == AccessKind::narrow) return body(Narrow{});
  body(Any{});
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
