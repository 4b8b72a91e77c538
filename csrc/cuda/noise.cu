// The noise on its own: what vae_fast.noise returns.
#include "noise.h"

namespace vae_fast {
namespace {

template <class A>
__global__ void __launch_bounds__(kThreads, 3) noise_fill(const __grid_constant__ NoiseFill a, const __grid_constant__ Grid grid) {
  const Place at = place(grid);
  const std::int64_t first = at.draw_part * grid.draws_per_part, end = smaller(first + grid.draws_per_part, a.draws);
  NoiseState state = shared_state_of(a.noise);
  for (std::int64_t row = at.row; row < at.row_end; row += grid.rows_at_once()) {
    if (!A::plain && a.noise.state_per_sample) state = state_of(a.noise, row);
    const auto in_eps = start_of<A>(a.eps, row);
    for_each_chunk<A>(grid, at, [&](auto column, int count) {
      for (std::int64_t draw = A::plain ? 0 : first; draw < (A::plain ? 1 : end); ++draw) {
        float eps[A::size];
        normals<A>(a.noise, state, draw, row, column, count, eps);
        store<A>(a.eps, in_eps + (A::plain ? 0 : draw * a.eps.draw_stride), column, count, eps);
      }
    });
  }
}

}  // namespace

void run(NoiseFill a, const Stream& stream, const Allocate&) {
  const std::int64_t rows = a.tiling.rows, columns = a.tiling.columns;
  if (rows * columns * a.draws == 0) return;
  const View* const views[] = {&a.eps};
  const AccessKind kind = choose_access(views, rows, columns, a.draws, {a.draws == 1 && is_plain(a.noise)});
  Grid grid = tile_rows(rows, columns, chunk_size(kind), a.draws);
  follow_memory(grid, kind, views);
  with_access<true>(kind, [&](auto access) {
    launch("noise_fill", noise_fill<decltype(access)>, stream, grid.blocks(), kThreads, a, grid);
  });
}

}  // namespace vae_fast
