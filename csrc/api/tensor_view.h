// A strided tensor of any dtype as the kernels see it, and the staging that turns a block of it into dense float32.
//
// A kernel works on blocks of at most kBlock elements that stay in the first-level cache. Where the memory already is
// dense float32 the block is used in place; otherwise it is gathered and converted on the way in, scattered and
// rounded on the way out. So no kernel is compiled per dtype or layout, and no tensor is ever copied as a whole.
#pragma once

#include <cstdint>

#include "../math/portable.h"

namespace vae_fast {

// A byte is a grey value in uint8 (255ths) and a number in count8.
enum class DType : int { float32, bfloat16, float16, uint8, boolean, count8, int16, int32, int64 };

VAE_FAST_FN std::int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::uint8: case DType::boolean: case DType::count8: return 1;
    case DType::bfloat16: case DType::float16: case DType::int16: return 2;
    case DType::float32: case DType::int32: return 4;
    case DType::int64: return 8;
  }
  return 0;
}

constexpr int kMaxDims = 8;
constexpr std::int64_t kBlock = 512;

struct View {
  char* data = nullptr;  // null: the argument is absent
  DType dtype = DType::float32;
  std::int64_t row_stride = 0;   // all strides in elements
  std::int64_t draw_stride = 0;  // between the draws of one sample, in tensors (num_samples, batch, ...)
  int dims = 0;                 // of one row (sample), adjacent dims merged where their strides allow; slowest first
  std::int64_t size[kMaxDims], stride[kMaxDims];

  VAE_FAST_FN explicit operator bool() const { return data != nullptr; }
  VAE_FAST_FN bool dense_row() const { return dims == 0 || (dims == 1 && stride[0] == 1); }
  VAE_FAST_FN std::int64_t item_size() const {
    return size_of(dtype);
  }
  VAE_FAST_FN View draw(std::int64_t k) const {
    View v = *this;
    v.data += k * draw_stride * item_size();
    return v;
  }
};

}  // namespace vae_fast
