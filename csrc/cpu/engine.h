// The CPU engine's entry: whole tensors in, tasks out to torch's OpenMP threads, per-task sums added up in order.
#pragma once

#include <string>
#include <vector>

#include "../api/arguments.h"

namespace vae_fast {

// Each fills its outputs for a batch of `rows` samples of `columns` elements; the tiling in the argument is set here.
void run(LatentForward args, std::int64_t rows, std::int64_t columns, int threads);
void run(LatentBackward args, std::int64_t rows, std::int64_t columns, int threads);
void run(NoiseFill args, std::int64_t rows, std::int64_t columns, int threads);
void run(LikelihoodForward args, std::int64_t rows, std::int64_t columns, int threads);
void run(LikelihoodBackward args, std::int64_t rows, std::int64_t columns, int threads);
void run(CategoricalForward args, int threads);
void run(CategoricalBackward args, int threads);
void run(MixtureForward args, int threads);
void run(MixtureBackward args, int threads);

// Instruction sets that were compiled in and that processor and operating system support, best last.
std::vector<std::string> available_isas();
const Kernels& kernels();               // those in use
void use_isa(const std::string& name);  // throws std::invalid_argument
bool has_openmp();

}  // namespace vae_fast
