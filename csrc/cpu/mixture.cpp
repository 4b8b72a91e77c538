// The op `mixture` on the CPU: vectors lie across the pixels of a sample. Backward evaluates every component once and
// keeps what it gave until all are known. Compiled once per instruction set.
#include "../common/mixture.h"

#include <memory>

#include "planes.h"
#include "sets.h"

VAE_FAST_NAMESPACE_BEGIN

namespace {

// All parameters of `count` pixels: parameter p of pixel i at data[p·stride + i], in the tensor itself where pixels are
// adjacent float32 there, else in a copy.
class Planes {
 public:
  Planes(const View3& tensor, std::int64_t parameters, std::int64_t pixels)
      : tensor_(tensor), parameters_(parameters), pixels_(pixels),
        in_place_(tensor.dtype == DType::float32 && tensor.stride[2] == 1) {
    if (!in_place_) copy_.reset(new float[parameters * kMixtureBlock]);
  }
  void read(std::int64_t sample, std::int64_t pixel, std::int64_t count) {
    at(sample, pixel);
    const View view = along_last(tensor_, sample, pixels_);
    for (std::int64_t p = 0; !in_place_ && p < parameters_; ++p) copy_in(view, Block{p, 1, pixel, count}, data + p * stride);
  }
  void at(std::int64_t sample, std::int64_t pixel) {
    data = in_place_ ? reinterpret_cast<float*>(tensor_.data) + sample * tensor_.stride[0] + pixel : copy_.get();
    stride = in_place_ ? tensor_.stride[1] : kMixtureBlock;
  }
  void write(std::int64_t sample, std::int64_t pixel, std::int64_t count) const {
    const View view = along_last(tensor_, sample, pixels_);
    for (std::int64_t p = 0; !in_place_ && p < parameters_; ++p)
      VAE_FAST_ISA::write(view, Block{p, 1, pixel, count}, data + p * stride);
  }

  float* data = nullptr;
  std::int64_t stride = 0;

 private:
  const View3& tensor_;
  std::int64_t parameters_, pixels_;
  bool in_place_;
  std::unique_ptr<float[]> copy_;
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
  VAE_FAST_FN vf32 parameter(int p, std::int64_t i, int count) const {
    return load_partial(parameters_.data + p * parameters_.stride + i, count);
  }
  // 0 where a pixel is left out.
  VAE_FAST_FN vf32 masked(std::int64_t i, int count, vf32 value) const {
    return mask_ ? select(load_partial(mask_ + i, count) != vf32{}, value, vf32{}) : value;
  }

 private:
  const Args& a_;
  Planes parameters_;
  Buffer target_buffers_[C], mask_buffer_;
  const float *target_[C], *mask_ = nullptr;
};

template <class Body> VAE_FAST_FN void for_each_piece(const Task& task, Body body) {
  for (std::int64_t sample = task.row_begin; sample < task.row_end; ++sample)
    for (std::int64_t pixel = task.column_begin; pixel < task.column_end; pixel += kMixtureBlock) {
      const std::int64_t left = task.column_end - pixel;
      body(sample, pixel, left < kMixtureBlock ? left : kMixtureBlock);
    }
}

template <int C> void forward(const MixtureForward& a, const Task& task) {
  Pixels<C, MixtureForward> pixels(a);
  Buffer terms;
  double total = 0;
  for_each_piece(task, [&](std::int64_t sample, std::int64_t pixel, std::int64_t n) {
    pixels.read(sample, pixel, n);
    for_each_vector(n, [&](std::int64_t i, int count) {
      vf32 t[C];
      pixels.levels(i, count, t);
      const auto load = [&](int p) VAE_FAST_LAMBDA { return pixels.parameter(p, i, count); };
      store(terms.data + i, pixels.masked(i, count, mixture_nll<C>(t, static_cast<int>(a.components), load)));
    });
    total += sum(terms.data, n);
    if (pixel + n < task.column_end) return;
    if (a.nll.partial) a.nll.partial[sample * a.tiling.column_segments + task.segment] = total;
    else a.nll.value[sample * a.nll.stride] = static_cast<float>(total);
    total = 0;
  });
}

template <int C> void backward(const MixtureBackward& a, const Task& task) {
  struct Kept { MixtureComponent<vf32, C> component; vf32 joint; };
  const int components = static_cast<int>(a.components);
  const MixtureLayout<C> at{components};
  Pixels<C, MixtureBackward> pixels(a);
  Planes gradients(a.grad_parameters, MixtureLayout<C>::per_component * a.components, a.pixels);
  const std::unique_ptr<Kept[]> kept(new Kept[components]);
  for_each_piece(task, [&](std::int64_t sample, std::int64_t pixel, std::int64_t n) {
    const vf32 scale = splat<vf32>(a.grad_nll[sample * a.grad_nll_stride]);
    pixels.read(sample, pixel, n);
    gradients.at(sample, pixel);
    for_each_vector(n, [&](std::int64_t i, int count) {
      vf32 t[C];
      pixels.levels(i, count, t);
      const auto load = [&](int p) VAE_FAST_LAMBDA { return pixels.parameter(p, i, count); };
      const auto put = [&](int p, vf32 value) VAE_FAST_LAMBDA {
        store_partial(gradients.data + p * gradients.stride + i, pixels.masked(i, count, value), count);
      };
      MixtureSums<vf32> sums(components, load);
      for (int k = 0; k < components; ++k) {
        kept[k].component = mixture_component<C, true>(t, at, k, load);
        kept[k].joint = sums.add(load(at.logit(k)), kept[k].component.nll);
      }
      const MixtureWeights<vf32> weights(sums);
      for (int k = 0; k < components; ++k)
        mixture_store<C>(at, k, scale * weights.prior(load(at.logit(k))), scale * weights.posterior(kept[k].joint),
                         kept[k].component, put);
    });
    gradients.write(sample, pixel, n);
  });
}

}  // namespace

void mixture_forward(const MixtureForward& a, const Task& task) {
  if (a.channels == 1) forward<1>(a, task);
  else forward<3>(a, task);
}

void mixture_backward(const MixtureBackward& a, const Task& task) {
  if (a.channels == 1) backward<1>(a, task);
  else backward<3>(a, task);
}

VAE_FAST_NAMESPACE_END
