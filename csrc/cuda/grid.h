// How threads are laid over a batch of rows (samples) of columns (elements).
//
// A thread works on a chunk of 4 or 8 neighbouring elements of a row: one or two Philox counters, and one 128-bit
// access where dtype, stride and alignment allow (access.h). `lanes` threads side by side share a row, the block's
// other threads take the next rows:
//   many short rows   few lanes, many rows a block, one after the other: a sum per sample stays in a warp
//   few long rows     the whole block on one row, and the row cut into segments, a block each
// The cut depends on the shapes alone, not on the device, so that a sum has the same bits on every one.
#pragma once

#include <algorithm>
#include <type_traits>

#include "launch.h"

namespace vae_fast {

constexpr int kThreads = 256;                 // of a block
constexpr int kWarp = 32;
#if !defined(VAE_FAST_CUDA_EMULATION)
constexpr std::int64_t kFill = 1 << 18;       // threads that fill the largest chips: 132 to 160 processors, 2048 each
#else
constexpr std::int64_t kFill = 1 << 10;       // small tensors meet every cut
#endif
constexpr std::int64_t kMostChunks = 8;       // a thread's share of a row, while the whole block is not on it; of short rows together
constexpr int kLineLanes = 8;                 // whose 16 bytes each fill a 128-byte line
constexpr std::int64_t kSummingBlocks = 512;  // more would leave too many partial sums to the last of them

struct Grid {
  std::int64_t rows = 0, columns = 0, chunks = 0;  // chunks: of a row
  std::int64_t row_tiles = 1, rows_per_tile = 1;
  int row_steps = 1;  // rows of a thread, rows_at_once() apart
  std::int64_t segments = 1, chunks_per_segment = 1;
  std::int64_t draw_parts = 1, draws_per_part = 1;
  std::int64_t runs = 1, run_chunks = 0;  // see follow_memory in access.h
  int lane_bits = 0;
  std::uint32_t* tickets = nullptr;

  VAE_FAST_FN int lanes() const { return 1 << lane_bits; }
  VAE_FAST_FN int rows_at_once() const { return kThreads >> lane_bits; }
  VAE_FAST_FN std::int64_t blocks() const { return row_tiles * segments * draw_parts; }
};

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// The fewest lanes that read whole lines of memory, or half lines where that leaves fewer lanes without a chunk. With one
// lane a row, as before, an access of a warp touched 32 lines.
inline int fewest_lane_bits(std::int64_t chunks) {
  const auto slots = [&](int lanes) { return ceil_div(chunks, lanes) * lanes; };
  int bits = 0;
  while ((1 << bits) < kLineLanes && (1 << bits) < chunks) ++bits;
  return (1 << bits) == kLineLanes && slots(kLineLanes / 2) < slots(kLineLanes) ? bits - 1 : bits;
}

// Whole rows a thread's lanes: a sum per sample needs nothing but the threads of a row.
inline Grid tile_rows(std::int64_t rows, std::int64_t columns, int chunk_size, std::int64_t draws = 1) {
  Grid g;
  g.rows = rows;
  g.columns = columns;
  g.chunks = ceil_div(columns, chunk_size);
  g.lane_bits = fewest_lane_bits(g.chunks);
  while (g.lanes() < kThreads && g.lanes() < g.chunks &&
         (rows * g.lanes() < kFill || ceil_div(g.chunks, g.lanes()) > kMostChunks))
    ++g.lane_bits;
  if (g.lanes() <= kWarp) {  // beyond, a sum takes a barrier
    // A thread sets out once for many rows. Twice as many threads as fill the chip, so that none waits long for the last.
    const std::int64_t most = kMostChunks / std::max<std::int64_t>(1, ceil_div(g.chunks, g.lanes()));
    g.row_steps = static_cast<int>(std::max<std::int64_t>(1, std::min(most, rows * g.lanes() / (2 * kFill))));
  }
  g.rows_per_tile = g.rows_at_once() * g.row_steps;
  g.row_tiles = ceil_div(rows, g.rows_per_tile);
  g.chunks_per_segment = std::max<std::int64_t>(g.chunks, 1);
  if (g.lanes() == kThreads && rows * kThreads < kFill) {
    const std::int64_t steps = ceil_div(g.chunks, kThreads), wanted = ceil_div(kFill, rows * kThreads);
    g.chunks_per_segment = ceil_div(steps, std::min(wanted, steps)) * kThreads;
    g.segments = ceil_div(g.chunks, g.chunks_per_segment);
  }
  const std::int64_t parts = std::max<std::int64_t>(1, kFill / (g.blocks() * kThreads));
  g.draws_per_part = ceil_div(draws, std::min(parts, draws));
  g.draw_parts = ceil_div(draws, g.draws_per_part);
  return g;
}

// One chunk a thread, and many rows: a sum over the batch stays in the thread's registers as long as possible.
inline Grid tile_columns(std::int64_t rows, std::int64_t columns, int chunk_size) {
  Grid g;
  g.rows = rows;
  g.columns = columns;
  g.chunks = ceil_div(columns, chunk_size);
  while (g.lanes() < kThreads && g.lanes() < g.chunks && (g.lanes() < kWarp || g.rows_at_once() > rows)) ++g.lane_bits;
  g.chunks_per_segment = g.lanes();
  g.segments = std::max<std::int64_t>(1, ceil_div(g.chunks, g.chunks_per_segment));
  const std::int64_t steps = std::max<std::int64_t>(1, ceil_div(rows, g.rows_at_once()));
  g.rows_per_tile = ceil_div(steps, std::min(steps, ceil_div(kSummingBlocks, g.segments))) * g.rows_at_once();
  g.row_tiles = std::max<std::int64_t>(1, ceil_div(rows, g.rows_per_tile));
  g.row_steps = static_cast<int>(g.rows_per_tile / g.rows_at_once());
  return g;
}

VAE_FAST_FN std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// Where this thread is.
struct Place {
  std::int64_t row, row_end;      // every rows_at_once()-th of them, row_steps times; those from row_end on are not there
  std::int64_t chunk, chunk_end;  // every lanes()-th of them
  std::uint32_t row_tile, segment, draw_part;
};

VAE_FAST_DEVICE std::uint32_t split(std::uint32_t& index, std::int64_t count) {
  if (count == 1) return 0;
  const std::uint32_t n = static_cast<std::uint32_t>(count), rest = index % n;
  index /= n;
  return rest;
}

VAE_FAST_DEVICE Place place(const Grid& g) {
  Place p;
  std::uint32_t block = blockIdx.x;
  p.draw_part = split(block, g.draw_parts);
  p.segment = split(block, g.segments);
  p.row_tile = block;
  p.row = p.row_tile * g.rows_per_tile + (threadIdx.x >> g.lane_bits);
  p.row_end = smaller((p.row_tile + 1) * g.rows_per_tile, g.rows);
  p.chunk = p.segment * g.chunks_per_segment + (threadIdx.x & (g.lanes() - 1));
  p.chunk_end = smaller((p.segment + 1) * g.chunks_per_segment, g.chunks);
  return p;
}

// A place in a row: 32 bits where a launch with longer rows takes another form.
template <class A> using Column = std::conditional_t<A::plain, std::uint32_t, std::int64_t>;

// The first element of a chunk.
template <class A> VAE_FAST_DEVICE Column<A> column_of(const Grid& g, Column<A> chunk) {
  if constexpr (!A::dense) {
    if (g.runs > 1) {
      if (g.chunks <= 0xFFFFFFFFll) {  // a 64-bit division is slow
        const std::uint32_t c = static_cast<std::uint32_t>(chunk), runs = static_cast<std::uint32_t>(g.runs);
        chunk = c % runs * g.run_chunks + c / runs;
      } else {
        chunk = chunk % g.runs * g.run_chunks + chunk / g.runs;
      }
    }
  }
  return chunk * A::size;
}

// Calls body(column, count) for the chunks of this thread in a row: their first elements and their lengths.
template <class A, class Body> VAE_FAST_DEVICE void for_each_chunk(const Grid& g, const Place& at, Body body) {
  const Column<A> end = static_cast<Column<A>>(at.chunk_end);
  for (Column<A> chunk = static_cast<Column<A>>(at.chunk); chunk < end; chunk += g.lanes()) {
    const Column<A> column = column_of<A>(g, chunk);
    body(column, A::dense ? A::size : static_cast<int>(smaller(A::size, g.columns - column)));
  }
}

}  // namespace vae_fast
