// The CUDA engine's entry: whole tensors in, one launch each on the caller's stream. No header of CUDA is needed here.
#pragma once

#include <functional>
#include <string>

#include "../api/arguments.h"

namespace vae_fast {

struct Stream { int device = 0; std::uintptr_t handle = 0; };

// Memory where several blocks share a sum: `partials` float64 numbers, and `tickets` 32-bit zeros. Asked for only then,
// at most once a launch, and used by it alone.
struct Scratch { double* partials = nullptr; std::uint32_t* tickets = nullptr; };
using Allocate = std::function<Scratch(std::int64_t partials, std::int64_t tickets)>;

// Each launches one kernel, or none where there is nothing to fill; pairwise_backward up to three. Throws what went wrong.
#define VAE_FAST_KERNEL(name, Args) void run(Args args, const Stream& stream, const Allocate& allocate);
#include "../api/ops.def"

}  // namespace vae_fast
