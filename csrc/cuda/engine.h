// The CUDA engine's entry: whole tensors in, one launch each on the caller's stream. No header of CUDA is needed here.
#pragma once

#include <functional>
#include <string>

#include "../api/arguments.h"

namespace vae_fast {

struct Stream { int device = 0; std::uintptr_t handle = 0; };

// Memory where several blocks share a sum: `partials` float64 numbers, and `tickets` 32-bit zeros that the launch
// leaves as zeros. Asked for only then, at most once a launch, and used on its stream alone.
struct Scratch { double* partials = nullptr; std::uint32_t* tickets = nullptr; };
using Allocate = std::function<Scratch(std::int64_t partials, std::int64_t tickets)>;

// Each launches one kernel for a batch of `rows` samples of `columns` elements. Throws what went wrong.
void run(LatentForward args, std::int64_t rows, std::int64_t columns, const Stream& stream, const Allocate& allocate);
void run(LatentBackward args, std::int64_t rows, std::int64_t columns, const Stream& stream, const Allocate& allocate);
void run(NoiseFill args, std::int64_t rows, std::int64_t columns, const Stream& stream, const Allocate& allocate);
void run(LikelihoodForward args, std::int64_t rows, std::int64_t columns, const Stream& stream, const Allocate& allocate);
void run(LikelihoodBackward args, std::int64_t rows, std::int64_t columns, const Stream& stream, const Allocate& allocate);

// These hold their sizes.
void run(CategoricalForward args, const Stream& stream, const Allocate& allocate);
void run(CategoricalBackward args, const Stream& stream, const Allocate& allocate);
void run(MixtureForward args, const Stream& stream, const Allocate& allocate);
void run(MixtureBackward args, const Stream& stream, const Allocate& allocate);

}  // namespace vae_fast
