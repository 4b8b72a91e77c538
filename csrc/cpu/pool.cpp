#include "pool.h"

#include <pthread.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <unordered_map>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace vae_fast {
namespace {

constexpr std::int64_t kPage = 2 << 20;

void* take_from_system(std::int64_t bytes) {
  void* block = std::aligned_alloc(kPage, bytes);  // above malloc's threshold, so a mapping of its own
  if (!block) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  madvise(block, bytes, MADV_HUGEPAGE);  // a hint: may fail
#endif
  return block;
}

std::int64_t limit_from_environment() {
  const char* text = std::getenv("VAE_FAST_CACHE_MB");
  return (text && *text ? std::atoll(text) : 1024) << 20;
}

struct Pool {
  std::mutex mutex;
  std::unordered_map<void*, std::int64_t> sizes;  // of all blocks
  std::multimap<std::int64_t, void*> free;        // by size
  std::int64_t cached = 0;
  const std::int64_t limit = limit_from_environment();

  void release(std::multimap<std::int64_t, void*>::iterator entry) {
    cached -= entry->first;
    sizes.erase(entry->second);
    std::free(entry->second);
    free.erase(entry);
  }
};

// Never destroyed: tensors may outlive the interpreter's teardown of this module. fork() takes the mutex first: held by
// another thread, it would stay locked in the child for good.
Pool& pool() {
  static Pool* const one = [] {
    Pool* const made = new Pool;
    pthread_atfork([] { pool().mutex.lock(); }, [] { pool().mutex.unlock(); }, [] { pool().mutex.unlock(); });
    return made;
  }();
  return *one;
}

}  // namespace

void* pool_allocate(std::int64_t bytes) {
  const std::int64_t size = (bytes + kPage - 1) / kPage * kPage;
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  const auto fit = p.free.lower_bound(size);
  if (fit != p.free.end() && fit->first <= size + size / 4) {
    void* const block = fit->second;
    p.cached -= fit->first;
    p.free.erase(fit);
    return block;
  }
  void* const block = take_from_system(size);
  p.sizes.emplace(block, size);
  return block;
}

void pool_free(void* block) {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  const std::int64_t size = p.sizes.at(block);
  const auto entry = p.free.emplace(size, block);
  p.cached += size;
  if (size > p.limit) return p.release(entry);
  // Which sizes will be requested again is unknown, so the largest blocks are released first.
  while (p.cached > p.limit) {
    auto largest = std::prev(p.free.end());
    if (largest == entry && largest != p.free.begin()) largest = std::prev(largest);
    p.release(largest);
  }
}

std::int64_t pool_limit() { return pool().limit; }

std::int64_t pool_cached() {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  return p.cached;
}

void pool_trim() {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  while (!p.free.empty()) p.release(p.free.begin());
}

}  // namespace vae_fast
