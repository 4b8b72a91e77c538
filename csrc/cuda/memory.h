// A chunk of a strided tensor of any dtype, into registers as float32 and back.
#pragma once

#include "access.h"

namespace vae_fast {

// kWords 32-bit words from memory that is aligned to all of them or to 128 bits.
template <int kWords> VAE_FAST_DEVICE void load_words(const char* from, std::uint32_t* to) {
  if constexpr (kWords >= 4) {
#pragma unroll
    for (int i = 0; i < kWords; i += 4) {
      const uint4 w = reinterpret_cast<const uint4*>(from)[i / 4];
      to[i] = w.x, to[i + 1] = w.y, to[i + 2] = w.z, to[i + 3] = w.w;
    }
  } else if constexpr (kWords == 2) {
    const uint2 w = *reinterpret_cast<const uint2*>(from);
    to[0] = w.x, to[1] = w.y;
  } else {
    to[0] = *reinterpret_cast<const std::uint32_t*>(from);
  }
}
template <int kWords> VAE_FAST_DEVICE void store_words(const std::uint32_t* from, char* to) {
  if constexpr (kWords >= 4) {
#pragma unroll
    for (int i = 0; i < kWords; i += 4)
      reinterpret_cast<uint4*>(to)[i / 4] = make_uint4(from[i], from[i + 1], from[i + 2], from[i + 3]);
  } else {
    *reinterpret_cast<uint2*>(to) = make_uint2(from[0], from[1]);
  }
}

VAE_FAST_DEVICE std::uint32_t load_bits(const View& v, std::int64_t offset) {
  switch (v.item_size()) {
    case 4: return reinterpret_cast<const std::uint32_t*>(v.data)[offset];
    case 2: return reinterpret_cast<const std::uint16_t*>(v.data)[offset];
    default: return reinterpret_cast<const std::uint8_t*>(v.data)[offset];
  }
}
VAE_FAST_DEVICE void store_bits(const View& v, std::int64_t offset, std::uint32_t bits) {
  if (v.item_size() == 4) reinterpret_cast<std::uint32_t*>(v.data)[offset] = bits;
  else reinterpret_cast<std::uint16_t*>(v.data)[offset] = static_cast<std::uint16_t>(bits);
}

VAE_FAST_DEVICE float half_to_float(std::uint32_t bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
// byte / 255, correctly rounded: a division by another name.
VAE_FAST_DEVICE float byte_fraction(std::uint32_t byte) {
  const float x = static_cast<float>(byte), q = x * (1.0f / 255.0f);
  return fma(fma(-q, 255.0f, x), 1.0f / 255.0f, q);
}

VAE_FAST_DEVICE float value_of(DType dtype, std::uint32_t bits) {
  switch (dtype) {
    case DType::bfloat16: return bit_cast<float>(bits << 16);
    case DType::float16: return half_to_float(bits);
    case DType::uint8: return byte_fraction(bits);
    case DType::boolean: return bits != 0 ? 1.0f : 0.0f;
    default: return bit_cast<float>(bits);
  }
}
// Two values rounded to 16 bits, the first in the low half.
VAE_FAST_DEVICE std::uint32_t bits_of(DType dtype, float low, float high) {
  return dtype == DType::bfloat16 ? bit_cast<std::uint32_t>(__floats2bfloat162_rn(low, high))
                                  : bit_cast<std::uint32_t>(__floats2half2_rn(low, high));
}

VAE_FAST_DEVICE std::uint64_t divide(std::uint64_t a, std::uint64_t b, std::uint64_t& rest) {
  if (((a | b) >> 32) == 0) {  // a 64-bit division is slow
    const std::uint32_t x = static_cast<std::uint32_t>(a), y = static_cast<std::uint32_t>(b), q = x / y;
    rest = x - q * y;
    return q;
  }
  const std::uint64_t q = a / b;
  rest = a - q * b;
  return q;
}

// How many elements the chunk at `column` has.
template <class A> VAE_FAST_DEVICE int count_of(const Grid& grid, std::int64_t column) {
  return A::dense ? A::size : static_cast<int>(smaller(A::size, grid.columns - column));
}

// Memory offsets, in elements, of `count` elements of a row from `column` on; `base` is the row's own.
template <int kSize>
VAE_FAST_DEVICE void find_offsets(const View& v, std::int64_t base, std::int64_t column, int count, std::int64_t (&at)[kSize]) {
  const int last = v.dims - 1;
  if (last <= 0) {
    const std::int64_t stride = last < 0 ? 0 : v.stride[0];
#pragma unroll
    for (int i = 0; i < kSize; ++i) at[i] = base + (column + i) * stride;
    return;
  }
  std::int64_t inner = 0, offset = 0;
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    if (i < count) {
      if (i == 0 || ++inner == v.size[last]) {
        std::uint64_t coordinate, index = divide(column + i, v.size[last], coordinate);
        inner = coordinate;
        offset = base + inner * v.stride[last];
#pragma unroll 1
        for (int d = last - 1; d > 0; --d) {
          index = divide(index, v.size[d], coordinate);
          offset += static_cast<std::int64_t>(coordinate) * v.stride[d];
        }
        offset += static_cast<std::int64_t>(index) * v.stride[0];
      } else {
        offset += v.stride[last];
      }
    }
    at[i] = offset;
  }
}

// What a load brings, untouched, so that nothing waits for it yet: the chunk's bytes if the access is dense, else an
// element a word. Of a constant row only the first word counts.
template <class A> struct Raw { std::uint32_t word[A::size]; };

// Starts loading `count` elements from `column` on, of the row at `base`. A dense access always has all of them.
template <class A> VAE_FAST_DEVICE Raw<A> fetch(const View& v, std::int64_t base, std::int64_t column, int count) {
  Raw<A> raw;
  if constexpr (!A::dense) {
    std::int64_t at[A::size];
    find_offsets(v, base, column, count, at);
#pragma unroll
    for (int i = 0; i < A::size; ++i) raw.word[i] = i < count ? load_bits(v, at[i]) : 0u;
  } else if (constant_row(v)) {
    raw.word[0] = load_bits(v, base);
  } else {
    const char* from = v.data + (base + column) * v.item_size();
    switch (v.item_size()) {
      case 4: load_words<A::size>(from, raw.word); break;
      case 2: load_words<A::size / 2>(from, raw.word); break;
      default: load_words<A::size / 4>(from, raw.word);
    }
  }
  return raw;
}

template <class A> VAE_FAST_DEVICE void unpack(const View& v, const Raw<A>& raw, float (&out)[A::size]) {
  if constexpr (!A::dense) {
#pragma unroll
    for (int i = 0; i < A::size; ++i) out[i] = value_of(v.dtype, raw.word[i]);
  } else if (constant_row(v)) {
    const float value = value_of(v.dtype, raw.word[0]);
#pragma unroll
    for (int i = 0; i < A::size; ++i) out[i] = value;
  } else if (v.item_size() == 4) {
#pragma unroll
    for (int i = 0; i < A::size; ++i) out[i] = bit_cast<float>(raw.word[i]);
  } else if (v.item_size() == 2) {
#pragma unroll
    for (int i = 0; i < A::size; ++i) out[i] = value_of(v.dtype, raw.word[i / 2] >> i % 2 * 16 & 0xFFFFu);
  } else {
#pragma unroll
    for (int i = 0; i < A::size; ++i) out[i] = value_of(v.dtype, raw.word[i / 4] >> i % 4 * 8 & 0xFFu);
  }
}

template <class A>
VAE_FAST_DEVICE void load(const View& v, std::int64_t base, std::int64_t column, int count, float (&out)[A::size]) {
  unpack<A>(v, fetch<A>(v, base, column, count), out);
}

template <class A>
VAE_FAST_DEVICE void store(const View& v, std::int64_t base, std::int64_t column, int count, const float (&in)[A::size]) {
  if constexpr (!A::dense) {
    std::int64_t at[A::size];
    find_offsets(v, base, column, count, at);
#pragma unroll
    for (int i = 0; i < A::size; ++i)
      if (i < count) store_bits(v, at[i], v.item_size() == 4 ? bit_cast<std::uint32_t>(in[i]) : bits_of(v.dtype, in[i], in[i]));
    return;
  }
  std::uint32_t word[A::size];
  char* to = v.data + (base + column) * v.item_size();
  if (v.item_size() == 4) {
#pragma unroll
    for (int i = 0; i < A::size; ++i) word[i] = bit_cast<std::uint32_t>(in[i]);
    store_words<A::size>(word, to);
  } else {
#pragma unroll
    for (int i = 0; i < A::size; i += 2) word[i / 2] = bits_of(v.dtype, in[i], in[i + 1]);
    store_words<A::size / 2>(word, to);
  }
}

}  // namespace vae_fast
