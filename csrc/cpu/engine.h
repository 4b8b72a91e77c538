// The CPU engine's entry: whole tensors in, tasks out to torch's OpenMP threads, per-task sums added up in order.
#pragma once

#include <string>
#include <vector>

#include "../api/arguments.h"

namespace vae_fast {

// Each fills its outputs.
#define VAE_FAST_KERNEL(name, Args) void run(Args args, int threads);
#include "../api/ops.def"

// Instruction sets that were compiled in and that processor and operating system support, best last.
std::vector<std::string> available_isas();
const Kernels& kernels();               // those in use
void use_isa(const std::string& name);  // throws std::invalid_argument
bool has_openmp();

}  // namespace vae_fast
