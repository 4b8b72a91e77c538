// The scheduler behind cuda_emulation.h, and what a test may ask of it (VAE_FAST_EXPORT).
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "../../csrc/cuda/grid.h"
#include "../../csrc/math/approximate.h"
#include "../../csrc/math/philox.h"
#include "cuda_emulation.h"

uint3 threadIdx, blockIdx;

namespace emulation {
namespace {

constexpr std::size_t kStack = 48 << 10;  // ASan clears its shadow at each switch
constexpr unsigned kWarp = 32;
constexpr std::size_t kResident = 3;  // blocks that run side by side

enum class State { ready, at_barrier, at_shuffle, done };
struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  State state = State::ready;
  std::uint32_t mask = 0;
  std::uint64_t value = 0, received = 0;
  unsigned lane = 0;
};
struct Warp { unsigned pace = 1; bool runs = true; };  // in one of `pace` steps on average
struct Block {
  unsigned index = 0;
  std::vector<Fibre> fibres;
  std::vector<Warp> warps;
  std::map<const void*, void*> shared;

  bool all(State state) const {
    return std::all_of(fibres.begin(), fibres.end(), [&](const Fibre& f) { return f.state == state; });
  }
};

std::mt19937_64 random_bits(1);
Block* block = nullptr;  // of the thread that runs
unsigned running = 0;    // its number there
Thread entry = nullptr;
void* entry_context = nullptr;
ucontext_t scheduler;
const void* scheduler_stack = nullptr;
std::size_t scheduler_stack_size = 0;

int device = 0, next_error = 0, last_device = -1;
std::uint64_t launches = 0, blocks_run = 0;
cudaStream_t last_stream = nullptr;

[[noreturn]] void fail(const char* what, const Block& where, unsigned thread) {
  std::fprintf(stderr, "cuda emulation: block %u, thread %u: %s\n", where.index, thread, what);
  std::abort();
}

void to_scheduler(bool for_ever) {
  void* fake_stack = nullptr;
  ucontext_t* const context = &block->fibres[running].context;
  __sanitizer_start_switch_fiber(for_ever ? nullptr : &fake_stack, scheduler_stack, scheduler_stack_size);
  swapcontext(context, &scheduler);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

void fibre_main() {
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
  entry(entry_context);
  block->fibres[running].state = State::done;
  to_scheduler(true);
}

void resume(Block& which, unsigned thread) {
  Fibre& fibre = which.fibres[thread];
  block = &which;
  running = threadIdx.x = thread;
  blockIdx.x = which.index;
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, fibre.stack.get(), kStack);
  swapcontext(&scheduler, &fibre.context);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
}

// Lets the threads go on that wait for nobody any more. Barriers take all threads, shuffles all lanes they name.
void release(Block& b) {
  const unsigned n = static_cast<unsigned>(b.fibres.size());
  if (b.all(State::at_barrier))
    for (Fibre& f : b.fibres) f.state = State::ready;
  for (unsigned warp = 0; warp < n; warp += kWarp) {
    const auto lane = [&](unsigned l) -> Fibre& { return b.fibres[warp + l]; };
    for (unsigned first = 0; first < kWarp && warp + first < n; ++first) {
      if (lane(first).state != State::at_shuffle) continue;
      const std::uint32_t mask = lane(first).mask;
      bool complete = true;
      for (unsigned l = 0; l < kWarp; ++l) {
        if (!(mask >> l & 1)) continue;
        if (warp + l >= n || lane(l).state == State::done) fail("a shuffle names this lane, which has ended", b, warp + l);
        complete = complete && lane(l).state == State::at_shuffle && lane(l).mask == mask;
      }
      if (!complete) continue;
      for (unsigned l = 0; l < kWarp; ++l) {
        if (!(mask >> l & 1)) continue;
        if (lane(l).lane >= kWarp || !(mask >> lane(l).lane & 1)) fail("a shuffle reads a lane that takes no part", b, warp + l);
        lane(l).received = lane(lane(l).lane).value;
      }
      for (unsigned l = 0; l < kWarp; ++l)
        if (mask >> l & 1) lane(l).state = State::ready;
    }
  }
}

void start(Block& b, unsigned index, unsigned threads) {
  b.index = index;
  b.fibres.resize(threads);
  b.warps.resize((threads + kWarp - 1) / kWarp);
  for (Warp& w : b.warps) w.pace = 1u << 2 * (random_bits() % 4);
  for (Fibre& f : b.fibres) {
    f.state = State::ready;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = nullptr;
    makecontext(&f.context, fibre_main, 0);
  }
}

void run_blocks(unsigned blocks, unsigned threads) {
  static Block resident[kResident];  // keeps its stacks
  std::vector<unsigned> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), random_bits);
  std::vector<Block*> live;
  for (Block& b : resident) {
    if (order.empty()) break;
    start(b, order.back(), threads);
    order.pop_back();
    live.push_back(&b);
  }
  std::vector<std::pair<Block*, unsigned>> ready, chosen;
  while (!live.empty()) {
    ready.clear();
    for (Block* b : live)
      for (unsigned t = 0; t < threads; ++t)
        if (b->fibres[t].state == State::ready) ready.push_back({b, t});
    if (ready.empty())
      for (unsigned t = 0; t < threads; ++t)
        if (live[0]->fibres[t].state != State::done) fail("waits for threads that never come", *live[0], t);
    // Some warps are slow, so that others get far ahead; one step in four takes only some of the lanes.
    for (Block* b : live)
      for (Warp& w : b->warps) w.runs = random_bits() % w.pace == 0;
    const bool some_lanes = random_bits() % 4 == 0;
    chosen.clear();
    for (const auto& [b, t] : ready)
      if (b->warps[t / kWarp].runs && (!some_lanes || random_bits() % 2)) chosen.push_back({b, t});
    if (chosen.empty()) chosen.push_back(ready[random_bits() % ready.size()]);
    std::shuffle(chosen.begin(), chosen.end(), random_bits);
    for (const auto& [b, t] : chosen) resume(*b, t);
    for (std::size_t i = live.size(); i-- > 0;) {
      Block& b = *live[i];
      release(b);
      if (!b.all(State::done)) continue;
      for (auto& [site, memory] : b.shared) std::free(memory);
      b.shared.clear();
      ++blocks_run;
      if (order.empty()) {
        live.erase(live.begin() + i);
      } else {
        start(b, order.back(), threads);
        order.pop_back();
      }
    }
  }
}

}  // namespace

void barrier() {
  block->fibres[running].state = State::at_barrier;
  to_scheduler(false);
}

std::uint64_t exchange(std::uint32_t mask, std::uint64_t value, unsigned lane) {
  Fibre& self = block->fibres[running];
  if (!(mask >> running % kWarp & 1)) fail("calls a shuffle that does not name its lane", *block, running);
  self.mask = mask;
  self.value = value;
  self.lane = lane;
  self.state = State::at_shuffle;
  to_scheduler(false);
  return self.received;
}

void* shared_memory(const void* site, std::size_t bytes) {
  void*& memory = block->shared[site];
  if (!memory) memory = std::memset(std::malloc(bytes), 0xFF, bytes);
  return memory;
}

cudaError_t launch(dim3 grid, dim3 threads, cudaStream_t stream, Thread thread, void* context) {
  if (next_error) return static_cast<cudaError_t>(std::exchange(next_error, 0));
  if (grid.x == 0 || threads.x == 0 || threads.x > 1024) return cudaErrorInvalidConfiguration;
  ++launches;
  last_stream = stream;
  last_device = device;
  entry = thread;
  entry_context = context;
  run_blocks(grid.x, threads.x);
  return cudaSuccess;
}

}  // namespace emulation

cudaError_t cudaGetDevice(int* device) { return *device = emulation::device, cudaSuccess; }
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device > 1) return cudaErrorInvalidDevice;  // there are two
  return emulation::device = device, cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorNoKernelImageForDevice ? "no kernel image" : error == cudaErrorInvalidDevice ? "invalid device" : "error";
}

#define VAE_FAST_EXPORT extern "C" __attribute__((visibility("default")))

VAE_FAST_EXPORT void emulation_seed(std::uint64_t seed) { emulation::random_bits.seed(seed); }
VAE_FAST_EXPORT void emulation_fail_next(int error) { emulation::next_error = error; }
VAE_FAST_EXPORT std::uint64_t emulation_launches() { return emulation::launches; }
VAE_FAST_EXPORT std::uint64_t emulation_blocks() { return emulation::blocks_run; }
VAE_FAST_EXPORT std::uint64_t emulation_stream() { return reinterpret_cast<std::uintptr_t>(emulation::last_stream); }
VAE_FAST_EXPORT int emulation_launch_device() { return emulation::last_device; }
VAE_FAST_EXPORT int emulation_device() { return emulation::device; }

// The largest number of 128-byte lines that the lanes of a warp touch when each takes 16 bytes of its dense row.
VAE_FAST_EXPORT int emulation_lines(std::int64_t rows, std::int64_t columns, int chunk_size) {
  const vae_fast::Grid grid = vae_fast::tile_rows(rows, columns, chunk_size);
  std::size_t most = 0;
  for (blockIdx.x = 0; blockIdx.x < 2; ++blockIdx.x) {
    std::map<std::uint32_t, std::set<std::int64_t>> lines;  // by warp
    for (threadIdx.x = 0; threadIdx.x < vae_fast::kThreads; ++threadIdx.x) {
      const vae_fast::Place at = vae_fast::place(grid);
      const std::int64_t chunk = at.row * grid.chunks + at.chunk;
      if (at.row < at.row_end && at.chunk < at.chunk_end) lines[threadIdx.x / vae_fast::kWarp].insert(chunk / 8);
    }
    for (const auto& [warp, touched] : lines) most = std::max(most, touched.size());
  }
  return static_cast<int>(most);
}

// The normals of two words as a thread computes them, of which the approximations err as much as they may.
VAE_FAST_EXPORT void emulation_normals(const std::uint32_t* w0, const std::uint32_t* w1, std::int64_t count, float* first, float* second) {
  for (std::int64_t i = 0; i < count; ++i) {
    const vae_fast::NormalPair<float> pair = vae_fast::approximate_box_muller(w0[i], w1[i]);
    first[i] = pair.first, second[i] = pair.second;
  }
}

// The random words of a counter as a thread computes them.
VAE_FAST_EXPORT void emulation_words(std::int64_t seed, std::int64_t offset, std::uint32_t group, std::uint32_t row, std::uint32_t* words) {
  const vae_fast::Words w = vae_fast::RngState::from(seed, offset).words(group, row);
  words[0] = w.w0, words[1] = w.w1, words[2] = w.w2, words[3] = w.w3;
}
