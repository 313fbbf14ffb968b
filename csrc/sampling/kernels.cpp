// The sampler for one instruction set. No standard library: see cpu/kernels.cpp. None of the sets has FMA, which would
// change the bits.
#include "sampling/kernels.h"

#include "arithmetic/platform.h"
#include "machine/instruction_sets.h"
#include "sampling/noise.h"
#include "sampling/philox.h"

namespace mgpt::sampling {
namespace {

struct Guided {
  std::uint32_t nan;      // not 0: some logit is not a number
  std::uint32_t allowed;  // ids not excluded
  std::uint32_t largest;
  std::uint32_t smallest;  // of the allowed
};

struct Blend {
  float guidance;
  MGPT_HOST_DEVICE float operator()(float c, float u) const { return u + guidance * (c - u); }
};
struct First {
  MGPT_HOST_DEVICE float operator()(float c, float) const { return c; }
};
struct Second {
  MGPT_HOST_DEVICE float operator()(float, float u) const { return u; }
};

template <class Formula>
MGPT_HOST_DEVICE Guided guided_keys(const float* __restrict cond, const float* __restrict uncond, std::uint32_t count,
                                    Formula formula, std::uint32_t* __restrict keys) {
  std::uint32_t nan = 0;
  std::uint32_t excluded_ids = 0;
  std::uint32_t largest = 0;
  std::uint32_t smallest_less_one = 0xFFFFFFFFu;  // an excluded key, 0, wraps around and never counts
  for (std::uint32_t i = 0; i < count; ++i) {
    const GuidedKey guided = guided_key(cond[i], uncond[i], formula);
    const std::uint32_t key = guided.key;
    nan |= guided.nan;
    keys[i] = key;
    excluded_ids += key == 0 ? 1u : 0u;
    largest = largest < key ? key : largest;
    smallest_less_one = key - 1 < smallest_less_one ? key - 1 : smallest_less_one;
  }
  return {nan, count - excluded_ids, largest, smallest_less_one + 1};
}

// A key that at least `k` keys reach and that drops exactly those below the k-th largest. Halving the range of keys
// reads the whole array at each of at most 32 steps, but in plain vector loops: faster than histograms at these sizes.
MGPT_HOST_DEVICE std::uint32_t threshold_key(const std::uint32_t* __restrict keys, std::uint32_t count, std::uint32_t k,
                                             std::uint32_t smallest, std::uint32_t largest) {
  std::uint64_t reached = smallest;                                // at least k keys reach this one
  std::uint64_t missed = static_cast<std::uint64_t>(largest) + 1;  // fewer than k reach this one
  while (missed - reached > 1) {
    const auto middle = static_cast<std::uint32_t>((reached + missed) / 2);
    std::uint32_t above = 0;
    for (std::uint32_t i = 0; i < count; ++i) above += keys[i] >= middle ? 1u : 0u;
    if (above == k) return middle;
    (above > k ? reached : missed) = middle;
  }
  return static_cast<std::uint32_t>(reached);
}

SampleResult draw(const SampleRequest& request, std::uint32_t* __restrict scratch) {
  const std::uint32_t count = request.count;
  std::uint32_t* __restrict keys = scratch;
  std::uint32_t* __restrict kept = scratch + count;
  std::uint32_t* __restrict ids = scratch + 2 * std::size_t{count};
  const float* cond = request.cond;
  const float* uncond = request.uncond != nullptr ? request.uncond : request.cond;

  Guided guided;
  if (request.uncond == nullptr || request.guidance == 1.0f) {
    guided = guided_keys(cond, uncond, count, First{}, keys);
  } else if (request.guidance == 0.0f) {
    guided = guided_keys(cond, uncond, count, Second{}, keys);
  } else {
    guided = guided_keys(cond, uncond, count, Blend{request.guidance}, keys);
  }
  if (guided.nan != 0) return {SampleStatus::not_a_number, 0};
  if (guided.allowed == 0) return {SampleStatus::nothing_left, 0};
  if (request.temperature == 0.0f) {
    std::uint32_t best = 0;
    while (keys[best] != guided.largest) ++best;
    return {SampleStatus::token, request.low + best};
  }

  const std::uint32_t threshold = request.top_k < guided.allowed
                                      ? threshold_key(keys, count, request.top_k, guided.smallest, guided.largest)
                                      : guided.smallest;
  std::uint32_t survivors = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    kept[survivors] = keys[i];
    ids[survivors] = request.low + i;
    survivors += keys[i] >= threshold ? 1u : 0u;
  }

  std::uint32_t best_key = 0;
  for (std::uint32_t j = 0; j < survivors; ++j) {
    const std::uint32_t key = score_key(kept[j], ids[j], request.temperature, request.seed, request.position);
    keys[j] = key;  // the guided keys have been used up
    best_key = best_key < key ? key : best_key;
  }
  std::uint32_t best = 0;
  while (keys[best] != best_key) ++best;
  return {SampleStatus::token, ids[best]};
}

void noise_of(std::uint64_t seed, std::uint32_t position, const std::uint32_t* ids, std::size_t count, float* noise) {
  const auto seed_low = static_cast<std::uint32_t>(seed);
  const auto seed_high = static_cast<std::uint32_t>(seed >> 32);
  for (std::size_t i = 0; i < count; ++i) noise[i] = gumbel_of_word(noise_word(seed_low, seed_high, position, ids[i]));
}

}  // namespace

extern const Kernels MGPT_OF_SET(kernels);
const Kernels MGPT_OF_SET(kernels){draw, noise_of};

}  // namespace mgpt::sampling
