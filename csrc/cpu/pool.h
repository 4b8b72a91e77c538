// Memory for large outputs that is kept when they are freed. malloc gives such blocks back to the system, and the next
// training step pays for every page again: up to twice the time of the kernel that fills them.
#pragma once

#include <cstdint>

namespace vae_fast {

// Blocks of 2 MiB huge pages, where the system has them. Safe in threads and across fork; throws std::bad_alloc.
void* pool_allocate(std::int64_t bytes);
void pool_free(void* block);

// Free blocks are kept up to this many bytes in all; 0 keeps none. From VAE_FAST_CACHE_MB, 1024 unless told.
std::int64_t pool_limit();
std::int64_t pool_cached();  // bytes in free blocks
void pool_trim();            // gives all free blocks back to the system

}  // namespace vae_fast
