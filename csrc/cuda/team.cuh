// A block of threads as a team (block_draw.h).
#pragma once

#include <cstdint>

#include "sampling/block_draw.h"

namespace mgpt {

struct Block {
  static constexpr std::uint32_t kThreads = 1024;
  static constexpr std::uint32_t kLanes = 32;
  static constexpr unsigned kAll = 0xFFFFFFFFu;

  __device__ std::uint32_t rank() const { return threadIdx.x; }
  __device__ std::uint32_t lane() const { return threadIdx.x % kLanes; }
  __device__ void sync() const { __syncthreads(); }
  __device__ void sync_lanes() const { __syncwarp(); }
  __device__ bool any(bool x) const { return __syncthreads_or(x ? 1 : 0) != 0; }
  __device__ void increment(std::uint32_t* counter) const { atomicAdd(counter, 1u); }

  __device__ std::uint32_t sum_before(std::uint32_t x) const {
    std::uint32_t sum = x;
    for (std::uint32_t distance = 1; distance < kLanes; distance *= 2) {
      const std::uint32_t lower = __shfl_up_sync(kAll, sum, distance);
      if (lane() >= distance) sum += lower;
    }
    return sum - x;
  }
  __device__ std::uint64_t largest(std::uint64_t x) const {
    unsigned long long best = x;
    for (std::uint32_t distance = kLanes / 2; distance > 0; distance /= 2) {
      const unsigned long long other = __shfl_xor_sync(kAll, best, static_cast<int>(distance));
      best = other > best ? other : best;
    }
    return best;
  }
  __device__ Places places(bool x) const {
    const unsigned lanes = __ballot_sync(kAll, x ? 1 : 0);
    const unsigned lower = lanes & ((1u << lane()) - 1u);
    return {static_cast<std::uint32_t>(__popc(lower)), static_cast<std::uint32_t>(__popc(lanes))};
  }
};

}  // namespace mgpt
