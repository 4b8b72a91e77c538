// Which instruction set's kernels run: the best that CPUID and the operating system's enabled state allow, or what
// VAE_FAST_CPU_ISA names. Compiled for the baseline.
#include <cstdlib>
#include <stdexcept>

#include "engine.h"
#include "isa_kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace vae_fast {
namespace {

Kernels of_baseline() {
  return {"baseline",
#define VAE_FAST_KERNEL(name, Args) baseline::name,
#include "../api/ops.def"
          baseline::noise_words};
}
#if defined(__x86_64__)
Kernels of_avx2() {
  return {"avx2",
#define VAE_FAST_KERNEL(name, Args) avx2::name,
#include "../api/ops.def"
          avx2::noise_words};
}
Kernels of_avx512() {
  return {"avx512",
#define VAE_FAST_KERNEL(name, Args) avx512::name,
#include "../api/ops.def"
          avx512::noise_words};
}
#endif

std::vector<Kernels> supported() {
  std::vector<Kernels> sets{of_baseline()};
#if defined(__x86_64__)
  // __builtin_cpu_supports reads CPUID and XCR0; it has no word for F16C in older compilers.
  unsigned eax, ebx, ecx = 0, edx;
  __get_cpuid(1, &eax, &ebx, &ecx, &edx);
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && (ecx & bit_F16C);
  if (avx2) sets.push_back(of_avx2());
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    sets.push_back(of_avx512());
#endif
  return sets;
}

const std::vector<Kernels>& sets() {
  static const std::vector<Kernels> all = supported();
  return all;
}

const Kernels& find(const std::string& name) {
  std::string known;
  for (const Kernels& set : sets()) {
    if (name == set.isa) return set;
    known += std::string(known.empty() ? "" : ", ") + set.isa;
  }
  throw std::invalid_argument("CPU instruction set '" + name + "' is not available here, only " + known);
}

const Kernels*& current() {
  static const Kernels* set = [] {
    const char* wanted = std::getenv("VAE_FAST_CPU_ISA");
    return wanted && *wanted ? &find(wanted) : &sets().back();
  }();
  return set;
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Kernels& set : sets()) names.emplace_back(set.isa);
  return names;
}

const Kernels& kernels() { return *current(); }

void use_isa(const std::string& name) { current() = &find(name); }

}  // namespace vae_fast
