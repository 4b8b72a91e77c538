// The instruction sets the kernels are compiled for, and the kernels each of them has.
#pragma once

#include "../api/arguments.h"

#define VAE_FAST_DECLARE_KERNELS(isa)                                        \
  namespace vae_fast { namespace isa {                                       \
  void latent_forward(const LatentForward&, const Task&);                    \
  void latent_backward(const LatentBackward&, const Task&);                  \
  void noise_fill(const NoiseFill&, const Task&);                            \
  void likelihood_forward(const LikelihoodForward&, const Task&);            \
  void likelihood_backward(const LikelihoodBackward&, const Task&);          \
  void categorical_forward(const CategoricalForward&, const Task&);          \
  void categorical_backward(const CategoricalBackward&, const Task&);        \
  void mixture_forward(const MixtureForward&, const Task&);                  \
  void mixture_backward(const MixtureBackward&, const Task&);                \
  void noise_words(const std::int64_t*, std::int64_t, std::int64_t, std::int64_t, std::uint32_t*); \
  }}

VAE_FAST_DECLARE_KERNELS(baseline)
#if defined(__x86_64__)
VAE_FAST_DECLARE_KERNELS(avx2)
VAE_FAST_DECLARE_KERNELS(avx512)
#endif
