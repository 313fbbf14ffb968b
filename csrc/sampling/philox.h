// Philox-4x32-10, a counter-based generator: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2,
// 3", SC 2011. Being a pure function of (key, counter), it gives every device and every batch the same noise.
#pragma once

#include <cstdint>

#include "arithmetic/platform.h"

namespace mgpt {

struct PhiloxBlock {
  std::uint32_t word[4];
};

// The ten rounds. `key0` and `key1` are the key's low and high words.
MGPT_HOST_DEVICE PhiloxBlock philox(std::uint32_t c0, std::uint32_t c1, std::uint32_t c2, std::uint32_t c3,
                                    std::uint32_t key0, std::uint32_t key1) {
#if defined(__GNUC__) && !defined(__CUDACC__)
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53u} * c0;
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<std::uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c1 = static_cast<std::uint32_t>(product1);
    c2 = static_cast<std::uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c3 = static_cast<std::uint32_t>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The word that belongs to one vocabulary id at one position: four neighbouring ids share a block.
MGPT_HOST_DEVICE std::uint32_t noise_word(std::uint32_t seed_low, std::uint32_t seed_high, std::uint32_t position,
                                          std::uint32_t id) {
  const PhiloxBlock block = philox(id >> 2, position, 0, 0, seed_low, seed_high);
  const std::uint32_t even = (id & 2) != 0 ? block.word[2] : block.word[0];
  const std::uint32_t odd = (id & 2) != 0 ? block.word[3] : block.word[1];
  return (id & 1) != 0 ? odd : even;
}

}  // namespace mgpt
