// A strided tensor of any dtype as the kernels see it, and the staging that turns a block of it into dense float32.
//
// A kernel works on blocks of at most kBlock elements that stay in the first-level cache. Where the memory already is
// dense float32 the block is used in place; otherwise it is gathered and converted on the way in, scattered and
// rounded on the way out. So no kernel is compiled per dtype or layout, and no tensor is ever copied as a whole.
#pragma once

#include <cstdint>

#include "../math/portable.h"

namespace vae_fast {

// (enumerator, torch's name, bytes). A byte is a grey value in uint8 (255ths) and a number in count8, which is torch's
// uint8, too.
#define VAE_FAST_DTYPES(X)                                                                            \
  X(float32, "float32", 4) X(bfloat16, "bfloat16", 2) X(float16, "float16", 2) X(uint8, "uint8", 1)  \
  X(boolean, "bool", 1) X(count8, "count8", 1) X(int16, "int16", 2) X(int32, "int32", 4) X(int64, "int64", 8) \
  X(uint16, "uint16", 2)

#define VAE_FAST_ENUMERATOR(dtype, name, bytes) dtype,
enum class DType : int { VAE_FAST_DTYPES(VAE_FAST_ENUMERATOR) };
#undef VAE_FAST_ENUMERATOR

VAE_FAST_FN std::int64_t size_of(DType dtype) {
#define VAE_FAST_SIZE(dtype, name, bytes) case DType::dtype: return bytes;
  switch (dtype) { VAE_FAST_DTYPES(VAE_FAST_SIZE) }
#undef VAE_FAST_SIZE
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
