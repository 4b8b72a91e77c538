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

// What a tensor may hold, so that no kernel is compiled for dtypes that never come.
enum class Content {
  reals,    // float32, bfloat16, float16: parameters, noise, gradients
  targets,  // any dtype
  flags     // bool: a mask
};

template <Content kContent> VAE_FAST_DEVICE std::int64_t item_size(const View& v) {
  if constexpr (kContent == Content::flags) return 1;
  if constexpr (kContent == Content::targets) return v.item_size();
  return v.dtype == DType::float32 ? 4 : 2;
}

// The float32 value of an element's bits, and back. bool and uint8 targets are read as 0 or 1, and as x/255. The bits of
// an int64 are those of its float32 value, since a load converts it (load_long).
template <DType kType> VAE_FAST_DEVICE float value_of(std::uint32_t bits) {
  if constexpr (kType == DType::float32 || kType == DType::int64) return bit_cast<float>(bits);
  if constexpr (kType == DType::bfloat16) return bit_cast<float>(bits << 16);
  if constexpr (kType == DType::float16) return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
  if constexpr (kType == DType::boolean) return bits != 0 ? 1.0f : 0.0f;
  if constexpr (kType == DType::count8) return static_cast<float>(bits);
  if constexpr (kType == DType::int16) return static_cast<float>(static_cast<std::int16_t>(bits));
  if constexpr (kType == DType::int32) return static_cast<float>(static_cast<std::int32_t>(bits));
  // correctly rounded, as the division by 255 is
  const float x = static_cast<float>(bits), q = x * (1.0f / 255.0f);
  return fma(fma(-q, 255.0f, x), 1.0f / 255.0f, q);
}
template <DType kType> VAE_FAST_DEVICE std::uint32_t bits_of(float low, float high) {  // two 16-bit elements
  if constexpr (kType == DType::bfloat16) return bit_cast<std::uint32_t>(__floats2bfloat162_rn(low, high));
  else return bit_cast<std::uint32_t>(__floats2half2_rn(low, high));
}
VAE_FAST_DEVICE std::uint32_t bits_of_long(std::int64_t x) { return bit_cast<std::uint32_t>(static_cast<float>(x)); }

// Calls body(std::integral_constant<DType, ...>): one branch for a whole chunk.
template <DType kType, class Body> VAE_FAST_DEVICE void with(Body body) { body(std::integral_constant<DType, kType>{}); }
template <Content kContent, class Body> VAE_FAST_DEVICE void with_dtype(DType dtype, Body body) {
  if (dtype == DType::float32) return with<DType::float32>(body);
  if (dtype == DType::bfloat16) return with<DType::bfloat16>(body);
  if constexpr (kContent == Content::targets) {
    if (dtype == DType::uint8) return with<DType::uint8>(body);
    if (dtype == DType::boolean) return with<DType::boolean>(body);
    if (dtype == DType::count8) return with<DType::count8>(body);
    if (dtype == DType::int16) return with<DType::int16>(body);
    if (dtype == DType::int32) return with<DType::int32>(body);
    if (dtype == DType::int64) return with<DType::int64>(body);
  }
  with<DType::float16>(body);
}
// Of an element as a load leaves it.
template <DType kType>
constexpr int kItemSize = kType == DType::float32 || kType == DType::int32 || kType == DType::int64 ? 4
                          : kType == DType::bfloat16 || kType == DType::float16 || kType == DType::int16 ? 2 : 1;

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

// Memory offsets, in elements, of `count` elements of a row from `column` on; `base` is the row's own.
VAE_FAST_DEVICE void find_offsets(const View& v, std::int64_t base, std::int64_t column, int count, std::int64_t (&at)[4]) {
  const int last = v.dims - 1;
  if (last <= 0) {
    const std::int64_t stride = last < 0 ? 0 : v.stride[0];
#pragma unroll
    for (int i = 0; i < 4; ++i) at[i] = base + (column + i) * stride;
    return;
  }
  std::int64_t inner = 0, offset = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
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
template <class A> struct Raw { std::uint32_t word[4]; };

template <class T>
VAE_FAST_DEVICE void gather(const char* data, const std::int64_t (&at)[4], int count, std::uint32_t (&word)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 8) word[i] = i < count ? bits_of_long(reinterpret_cast<const T*>(data)[at[i]]) : 0u;
    else word[i] = i < count ? reinterpret_cast<const T*>(data)[at[i]] : 0u;
  }
}
template <class T>
VAE_FAST_DEVICE void scatter(const std::uint32_t (&word)[4], const std::int64_t (&at)[4], int count, char* data) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (i < count) reinterpret_cast<T*>(data)[at[i]] = static_cast<T>(word[i]);
}

// Four int64 from memory that is aligned to 128 bits.
VAE_FAST_DEVICE void load_long(const char* from, std::uint32_t (&word)[4]) {
  std::uint32_t half[8];
  load_words<8>(from, half);
#pragma unroll
  for (int i = 0; i < 4; ++i)
    word[i] = bits_of_long(static_cast<std::int64_t>(static_cast<std::uint64_t>(half[2 * i + 1]) << 32 | half[2 * i]));
}

// Where a row begins: its offset in elements, or in a plain form its address, which the compiler is kept from computing
// anew for every chunk (SASS of latent forward). Call it outside the loop over chunks.
template <class A> using RowStart = std::conditional_t<A::plain, char*, std::int64_t>;
template <class A> VAE_FAST_DEVICE RowStart<A> start_at(const View& v, std::int64_t offset) {
  if constexpr (A::plain) {
    char* start = v ? v.data + offset * kItemSize<A::dtype> : nullptr;
#if defined(__CUDA_ARCH__)
    std::size_t address = __cvta_generic_to_global(start);  // there and back, or the compiler forgets which memory it is
    asm volatile("" : "+l"(address));
    start = static_cast<char*>(__cvta_global_to_generic(address));
#endif
    return start;
  } else {
    return offset;
  }
}
template <class A> VAE_FAST_DEVICE RowStart<A> start_of(const View& v, std::int64_t row, std::int64_t draw = 0) {
  return start_at<A>(v, row * v.row_stride + draw * v.draw_stride);
}

// Starts loading `count` elements from `column` on, of the row at `start`. A dense access always has all of them. A plain
// one looks only with kMayBeConstant at whether the row is constant.
template <class A, Content kContent = Content::reals, bool kMayBeConstant = false>
VAE_FAST_DEVICE Raw<A> load_raw(const View& v, RowStart<A> start, Column<A> column, int count) {
  constexpr bool bytes = kContent != Content::reals, words = kContent != Content::flags, longs = kContent == Content::targets;
  Raw<A> raw;
  if constexpr (A::plain) {
    constexpr int bytes = kItemSize<A::dtype>;
    if (kMayBeConstant && constant_row(v)) {
      if constexpr (bytes == 4) raw.word[0] = *reinterpret_cast<const std::uint32_t*>(start);
      else raw.word[0] = *reinterpret_cast<const std::uint16_t*>(start) * 0x10001u;
      raw.word[1] = raw.word[2] = raw.word[3] = raw.word[0];
    } else {
      load_words<4>(start + std::uint64_t{column} * bytes, raw.word);
    }
    return raw;
  } else {
    const std::int64_t size = item_size<kContent>(v);
    if (A::dense && !constant_row(v)) {
      const char* from = v.data + (start + column) * size;
      if (words && A::size == 4 && size == 4) load_words<4>(from, raw.word);
      else if (longs && A::size == 4 && size == 8) load_long(from, raw.word);
      else if (words && size == 2) load_words<A::size / 2>(from, raw.word);
      else if (bytes) load_words<A::size / 4>(from, raw.word);
      return raw;
    }
    std::int64_t at[4];
    if (A::dense) at[0] = start, count = 1;
    else find_offsets(v, start, column, count, at);
    if (words && size == 4) gather<std::uint32_t>(v.data, at, count, raw.word);
    else if (longs && size == 8) gather<std::int64_t>(v.data, at, count, raw.word);
    else if (words && size == 2) gather<std::uint16_t>(v.data, at, count, raw.word);
    else if (bytes) gather<std::uint8_t>(v.data, at, count, raw.word);
    return raw;
  }
}

template <class A, DType kDType> VAE_FAST_DEVICE void unpack_words(const Raw<A>& raw, float (&out)[A::size]) {
  constexpr int per_word = A::dense ? 4 / kItemSize<kDType> : 1, bits = 32 / per_word;
  constexpr std::uint32_t mask = 0xFFFFFFFFu >> (32 - bits);
#pragma unroll
  for (int i = 0; i < A::size; ++i) out[i] = value_of<kDType>(raw.word[i / per_word] >> i % per_word * bits & mask);
}

template <class A, Content kContent = Content::reals>
VAE_FAST_DEVICE void unpack(const View& v, const Raw<A>& raw, float (&out)[A::size]) {
  if constexpr (A::plain) {
    unpack_words<A, A::dtype>(raw, out);
    return;
  }
  if (A::dense && constant_row(v)) {
    with_dtype<kContent>(v.dtype, [&](auto type) { out[0] = value_of<decltype(type)::value>(raw.word[0]); });
#pragma unroll
    for (int i = 1; i < A::size; ++i) out[i] = out[0];
    return;
  }
  with_dtype<kContent>(v.dtype, [&](auto type) {
    constexpr DType dtype = decltype(type)::value;
    if constexpr (A::size * kItemSize<dtype> <= 16) unpack_words<A, dtype>(raw, out);  // there are no others
  });
}

template <class A, Content kContent = Content::reals>
VAE_FAST_DEVICE void load(const View& v, RowStart<A> start, Column<A> column, int count, float (&out)[A::size]) {
  unpack<A, kContent>(v, load_raw<A, kContent>(v, start, column, count), out);
}

// What comes from above: for a sample, and for each element of a chunk of it.
VAE_FAST_DEVICE float of_sample(const Upstream& upstream, std::int64_t row, std::int64_t draw = 0) {
  return upstream.value ? upstream.value[row * upstream.stride + draw * upstream.draw_stride] : 0.0f;
}
template <class A>
VAE_FAST_DEVICE void load_upstream(const Upstream& upstream, float of_row, std::int64_t row, Column<A> column, int count,
                                   float (&out)[A::size], std::int64_t draw = 0) {
#pragma unroll
  for (int i = 0; i < A::size; ++i) out[i] = of_row;
  if constexpr (!A::plain)
    if (upstream.elements) load<A>(upstream.elements, start_of<A>(upstream.elements, row, draw), column, count, out);
}

// Bit i: whether element i of the chunk is there and the mask, if any, lets it count.
template <class A> VAE_FAST_DEVICE std::uint32_t kept_of(const View& mask, const Raw<A>& raw, int count) {
  const std::uint32_t all = (1u << count) - 1;
  if (!mask) return all;
  if (A::dense && constant_row(mask)) return (raw.word[0] & 0xFFu) != 0 ? all : 0u;
  std::uint32_t kept = 0;
#pragma unroll
  for (int i = 0; i < A::size; ++i) {
    const std::uint32_t byte = A::dense ? raw.word[i / 4] >> 8 * (i % 4) & 0xFFu : raw.word[i];
    if (byte != 0) kept |= 1u << i;
  }
  return kept;
}

template <class A>
VAE_FAST_DEVICE void store(const View& v, RowStart<A> start, Column<A> column, int count, const float (&in)[A::size]) {
  std::uint32_t word[4];
  if constexpr (A::plain) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (A::size == 4) word[i] = bit_cast<std::uint32_t>(in[i]);
      else word[i] = bits_of<A::dtype>(in[2 * i], in[2 * i + 1]);
    }
    store_words<4>(word, start + std::uint64_t{column} * kItemSize<A::dtype>);
  } else {
    std::int64_t at[4];
    if constexpr (!A::dense) find_offsets(v, start, column, count, at);
    char* const to = v.data + (start + column) * item_size<Content::reals>(v);
    if constexpr (A::size == 4) {
      if (v.dtype == DType::float32) {
#pragma unroll
        for (int i = 0; i < 4; ++i) word[i] = bit_cast<std::uint32_t>(in[i]);
        if (A::dense) store_words<4>(word, to);
        else scatter<std::uint32_t>(word, at, count, v.data);
        return;
      }
    }
#pragma unroll
    for (int i = 0; i < A::size; i += 2)
      word[i / 2] = v.dtype == DType::bfloat16 ? bits_of<DType::bfloat16>(in[i], in[i + 1]) : bits_of<DType::float16>(in[i], in[i + 1]);
    if constexpr (A::dense) {
      store_words<A::size / 2>(word, to);
    } else {
      const std::uint32_t element[4] = {word[0], word[0] >> 16, word[1], word[1] >> 16};
      scatter<std::uint16_t>(element, at, count, v.data);
    }
  }
}

// One element.
template <Content kContent> VAE_FAST_DEVICE float element_at(const char* data, DType dtype, std::int64_t at) {
  float value;
  if constexpr (kContent == Content::reals) {
    if (dtype == DType::float32) return reinterpret_cast<const float*>(data)[at];
    const std::uint32_t bits = reinterpret_cast<const std::uint16_t*>(data)[at];
    value = dtype == DType::bfloat16 ? value_of<DType::bfloat16>(bits) : value_of<DType::float16>(bits);
  } else {
    with_dtype<kContent>(dtype, [&](auto type) {
      constexpr DType t = decltype(type)::value;
      if constexpr (t == DType::int64) value = static_cast<float>(reinterpret_cast<const std::int64_t*>(data)[at]);
      else if constexpr (kItemSize<t> == 4) value = value_of<t>(reinterpret_cast<const std::uint32_t*>(data)[at]);
      else if constexpr (kItemSize<t> == 2) value = value_of<t>(reinterpret_cast<const std::uint16_t*>(data)[at]);
      else value = value_of<t>(reinterpret_cast<const std::uint8_t*>(data)[at]);
    });
  }
  return value;
}
VAE_FAST_DEVICE void set_element(char* data, DType dtype, std::int64_t at, float value) {
  if (dtype == DType::float32) {
    reinterpret_cast<float*>(data)[at] = value;
  } else {
    const std::uint32_t bits =
        dtype == DType::bfloat16 ? bits_of<DType::bfloat16>(value, 0.0f) : bits_of<DType::float16>(value, 0.0f);
    reinterpret_cast<std::uint16_t*>(data)[at] = static_cast<std::uint16_t>(bits);
  }
}

}  // namespace vae_fast
