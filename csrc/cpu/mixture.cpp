// The op `mixture` on the CPU: vectors lie across the pixels of a sample. For the gradient every component is evaluated
// once and what it gave is kept until all are known. Compiled once per instruction set.
#include "../formulas/mixture.h"

#include <memory>

#include "blocks/blocks.h"
#include "blocks/view3_rows.h"
#include "isa_kernels.h"

VAE_FAST_NAMESPACE_BEGIN

namespace {

typedef float quad __attribute__((vector_size(16)));

// out[column·out_stride + row] = in[row·in_stride + column]
void transpose(const float* in, std::int64_t in_stride, std::int64_t rows, std::int64_t columns, float* out,
               std::int64_t out_stride) {
  const std::int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
  for (std::int64_t r = 0; r < whole_rows; r += 4)
    for (std::int64_t c = 0; c < whole_columns; c += 4) {
      const float* from = in + r * in_stride + c;
      float* to = out + c * out_stride + r;
      const quad w = load<quad>(from), x = load<quad>(from + in_stride);
      const quad y = load<quad>(from + 2 * in_stride), z = load<quad>(from + 3 * in_stride);
      const quad a = {w[0], x[0], w[1], x[1]}, b = {y[0], z[0], y[1], z[1]};
      const quad d = {w[2], x[2], w[3], x[3]}, e = {y[2], z[2], y[3], z[3]};
      store(to, quad{a[0], a[1], b[0], b[1]});
      store(to + out_stride, quad{a[2], a[3], b[2], b[3]});
      store(to + 2 * out_stride, quad{d[0], d[1], e[0], e[1]});
      store(to + 3 * out_stride, quad{d[2], d[3], e[2], e[3]});
    }
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c) out[c * out_stride + r] = in[r * in_stride + c];
}

// All parameters of some pixels, parameter p of pixel i at data[p·kMixtureBlock + i]. Always a copy: where pixels are
// adjacent in memory the parameters are often a power of two apart, and fight for the same few lines of the cache.
//
// A block's memory is many short runs, which the hardware prefetcher does not cover: they are prefetched while another
// block is computed.
class ParameterTile {
  const View3& tensor_;
  const std::int64_t parameters_, pixels_;
  const std::unique_ptr<float[]> storage_;
  float* const rows_;  // the same, pixel by pixel
  const char* expected_ = nullptr;
  std::int64_t step_ = 0, size_ = 0;

 public:
  float* const data;

  ParameterTile(const View3& tensor, std::int64_t parameters, std::int64_t pixels)
      : tensor_(tensor), parameters_(parameters), pixels_(pixels), storage_(new float[2 * parameters * kMixtureBlock]),
        rows_(storage_.get() + parameters * kMixtureBlock), data(storage_.get()) {}

  // Names the block whose memory `prefetch` prefetches.
  void expect(std::int64_t sample, std::int64_t pixel) {
    size_ = tensor_.stride[2] == 1 ? size_of(tensor_.dtype) : 0;
    step_ = size_ * tensor_.stride[1];
    expected_ = tensor_.data + size_ * (sample * tensor_.stride[0] + pixel);
  }
  template <bool kWrite> VAE_FAST_FN void prefetch(int p, std::int64_t i) const {
    __builtin_prefetch(expected_ + p * step_ + i * size_, kWrite, 2);
  }

  void read(std::int64_t sample, std::int64_t pixel, std::int64_t count) {
    if (tensor_.stride[1] != 1) {
      const View view = along_last(tensor_, sample, pixels_);
      for (std::int64_t p = 0; p < parameters_; ++p) copy_in(view, Block{p, 1, pixel, count}, data + p * kMixtureBlock);
    } else if (float* const memory = floats(sample, pixel)) {
      transpose(memory, tensor_.stride[2], count, parameters_, data, kMixtureBlock);
    } else {
      const View view = along_middle(tensor_, sample, parameters_);
      for (std::int64_t i = 0; i < count; ++i) copy_in(view, Block{pixel + i, 1, 0, parameters_}, rows_ + i * parameters_);
      transpose(rows_, parameters_, count, parameters_, data, kMixtureBlock);
    }
  }
  void write(std::int64_t sample, std::int64_t pixel, std::int64_t count) const {
    if (tensor_.stride[1] != 1) {
      const View view = along_last(tensor_, sample, pixels_);
      for (std::int64_t p = 0; p < parameters_; ++p) copy_out(view, Block{p, 1, pixel, count}, data + p * kMixtureBlock);
    } else if (float* const memory = floats(sample, pixel)) {
      transpose(data, kMixtureBlock, parameters_, count, memory, tensor_.stride[2]);
    } else {
      const View view = along_middle(tensor_, sample, parameters_);
      transpose(data, kMixtureBlock, parameters_, count, rows_, parameters_);
      for (std::int64_t i = 0; i < count; ++i) copy_out(view, Block{pixel + i, 1, 0, parameters_}, rows_ + i * parameters_);
    }
  }

 private:
  // The parameters of a pixel, if they are float32.
  float* floats(std::int64_t sample, std::int64_t pixel) const {
    if (tensor_.dtype != DType::float32) return nullptr;
    return reinterpret_cast<float*>(tensor_.data) + sample * tensor_.stride[0] + pixel * tensor_.stride[2];
  }
};

// What both passes read of a block of pixels.
template <int C, class Args> class Pixels {
 public:
  Pixels(const Args& a) : a_(a), parameters_(a.parameters, MixtureLayout<C>::per_component * a.components, a.pixels) {}

  void read(std::int64_t sample, std::int64_t pixel, std::int64_t count) {
    const View target = along_last(a_.target, sample, a_.pixels), mask = along_last(a_.mask, sample, a_.pixels);
    for (int c = 0; c < C; ++c) target_[c] = VAE_FAST_ISA::read(target, Block{c, 1, pixel, count}, target_buffers_[c]);
    mask_ = a_.mask.data ? VAE_FAST_ISA::read(mask, Block{0, 1, pixel, count}, mask_buffer_) : nullptr;
    parameters_.read(sample, pixel, count);
  }
  VAE_FAST_FN void levels(std::int64_t i, int count, vf32* t) const {
    for (int c = 0; c < C; ++c) {
      const vf32 x = load_partial(target_[c] + i, count);
      t[c] = x + x - splat<vf32>(1.0f);
    }
  }
  void expect(std::int64_t sample, std::int64_t pixel) { parameters_.expect(sample, pixel); }
  VAE_FAST_FN vf32 parameter(int p, std::int64_t i) const {
    parameters_.prefetch<false>(p, i);
    return load<vf32>(parameters_.data + p * kMixtureBlock + i);
  }
  // 0 where a pixel is left out.
  VAE_FAST_FN vf32 masked(std::int64_t i, int count, vf32 value) const {
    return mask_ ? select(load_partial(mask_ + i, count) != vf32{}, value, vf32{}) : value;
  }

 private:
  const Args& a_;
  ParameterTile parameters_;
  Buffer target_buffers_[C], mask_buffer_;
  const float *target_[C], *mask_ = nullptr;
};

// body(sample, pixel, count) for every block; before it, expect(sample, pixel) of the one that comes next.
template <class Expect, class Body> VAE_FAST_FN void for_each_piece(const Task& task, Expect expect, Body body) {
  for (std::int64_t sample = task.row_begin; sample < task.row_end; ++sample)
    for (std::int64_t pixel = task.column_begin, next; pixel < task.column_end; pixel = next) {
      next = pixel + kMixtureBlock;
      if (next < task.column_end) expect(sample, next);
      else if (sample + 1 < task.row_end) expect(sample + 1, task.column_begin);
      body(sample, pixel, next < task.column_end ? kMixtureBlock : task.column_end - pixel);
    }
}

template <int C> void forward(const MixtureForward& a, const Task& task) {
  Pixels<C, MixtureForward> pixels(a);
  Buffer terms;
  Losses nll(a.nll, a.tiling, task);
  const auto expect = [&](std::int64_t sample, std::int64_t pixel) { pixels.expect(sample, pixel); };
  for_each_piece(task, expect, [&](std::int64_t sample, std::int64_t pixel, std::int64_t n) {
    pixels.read(sample, pixel, n);
    for_each_vector(n, [&](std::int64_t i, int count) {
      vf32 t[C];
      pixels.levels(i, count, t);
      const auto load = [&](int p) VAE_FAST_LAMBDA { return pixels.parameter(p, i); };
      store(terms.data + i, pixels.masked(i, count, mixture_nll<C>(t, static_cast<int>(a.components), load)));
    });
    nll.add(Block{sample, 1, pixel, n}, terms.data);
  });
}

// The gradient, for grad_nll as factors, or of the sum where there are none; and the nll, if it is wanted.
template <int C, class Args> void differentiate(const Args& a, const Task& task, const Upstream& grad_nll, Losses* nll) {
  const int components = static_cast<int>(a.components);
  const MixtureLayout<C> at{components};
  Pixels<C, Args> pixels(a);
  ParameterTile gradients(a.grad_parameters, MixtureLayout<C>::per_component * a.components, a.pixels);
  const std::unique_ptr<MixtureComponent<vf32, C>[]> kept(new MixtureComponent<vf32, C>[components]);
  Buffer terms, upstream_buffer;
  const auto expect = [&](std::int64_t sample, std::int64_t pixel) { pixels.expect(sample, pixel); };
  for_each_piece(task, expect, [&](std::int64_t sample, std::int64_t pixel, std::int64_t n) {
    const Block block{sample, 1, pixel, n};
    const float* upstream = grad_nll ? read(grad_nll, block, upstream_buffer) : nullptr;
    pixels.read(sample, pixel, n);
    gradients.expect(sample, pixel);
    for_each_vector(n, [&](std::int64_t i, int count) {
      vf32 t[C];
      pixels.levels(i, count, t);
      const auto load = [&](int p) VAE_FAST_LAMBDA {
        gradients.prefetch<true>(p, i);
        return pixels.parameter(p, i);
      };
      const auto put = [&](int p, vf32 value) VAE_FAST_LAMBDA {
        store(gradients.data + p * kMixtureBlock + i, pixels.masked(i, count, value));
      };
      const vf32 scale = upstream ? load_partial(upstream + i, count) : splat<vf32>(1.0f);
      MixtureSums<vf32> sums(components, load);
      for (int k = 0; k < components; ++k) {
        kept[k] = mixture_component<C, true>(t, at, k, load);
        sums.add(load(at.logit(k)), kept[k].fall, kept[k].factor);
      }
      const MixtureWeights<vf32> weights(sums);
      for (int k = 0; k < components; ++k) {
        const vf32 logit = load(at.logit(k)), posterior = weights.posterior(logit, kept[k].fall, kept[k].factor);
        mixture_store<C>(at, k, scale * weights.prior(logit), scale * posterior, kept[k], put);
      }
      if (nll) store(terms.data + i, pixels.masked(i, count, sums.nll()));
    });
    if (nll) nll->add(block, terms.data);
    gradients.write(sample, pixel, n);
  });
}

template <int C> void forward_and_gradient(const MixtureForward& a, const Task& task) {
  Losses nll(a.nll, a.tiling, task);
  differentiate<C>(a, task, {}, &nll);
}
template <int C> void backward(const MixtureBackward& a, const Task& task) {
  differentiate<C>(a, task, a.grad_nll, nullptr);
}

}  // namespace

void mixture_forward(const MixtureForward& a, const Task& task) {
  if (a.grad_parameters.data) a.channels == 1 ? forward_and_gradient<1>(a, task) : forward_and_gradient<3>(a, task);
  else a.channels == 1 ? forward<1>(a, task) : forward<3>(a, task);
}

void mixture_backward(const MixtureBackward& a, const Task& task) {
  a.channels == 1 ? backward<1>(a, task) : backward<3>(a, task);
}

VAE_FAST_NAMESPACE_END
