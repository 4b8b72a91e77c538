// The memory of a block that will be copied in or out, asked for while its noise is made. A processor looks ahead a few
// hundred instructions, far fewer than the noise takes: without this a copy waits for memory and the noise for the copy.
#pragma once

#include "block_io.h"

VAE_FAST_NAMESPACE_BEGIN

class Prefetcher {
  static constexpr std::int64_t kLine = 64;
  static constexpr int kViews = 5;
  const char* at_[kViews];
  std::int64_t bytes_[kViews];  // a step
  std::int64_t steps_;
  int views_ = 0;

 public:
  explicit VAE_FAST_FN Prefetcher(std::int64_t steps) : steps_(steps) {}

  // Rows of adjacent elements, not too far from each other (half of a packed pair, say); others are not worth their lines.
  VAE_FAST_FN void add_always(const View& view, const Block& block) {
    if (!view || view.dims != 1 || view.stride[0] != 1 || views_ == kViews) return;
    const std::int64_t extent = (block.rows - 1) * view.row_stride + block.columns;
    if (extent < block.size() || extent > 4 * block.size()) return;
    at_[views_] = view.data + (block.row * view.row_stride + block.column) * view.item_size();
    bytes_[views_++] = (extent * view.item_size() / steps_ + kLine - 1) / kLine * kLine;
  }
  // The same where the block is copied; the hardware prefetcher covers in-place access.
  template <class... Views> VAE_FAST_FN void add(const Block& block, const Views&... views) {
    ((in_place(views, block) ? void() : add_always(views, block)), ...);
  }
  VAE_FAST_FN void step() {
    for (int v = 0; v < views_; ++v) {
      const char* const end = at_[v] + bytes_[v];
      for (const char* line = at_[v]; line < end; line += kLine) __builtin_prefetch(line);
      at_[v] = end;
    }
  }
};

VAE_FAST_NAMESPACE_END
