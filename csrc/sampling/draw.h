// What a draw is made of, on every device: the request, and logits as integers in the order of the numbers.
#pragma once

#include <cstdint>

#include "arithmetic/platform.h"
#include "sampling/noise.h"
#include "sampling/philox.h"

namespace mgpt {

struct SampleRequest {
  const float* cond;    // logits of ids low, low + 1, ...
  const float* uncond;  // the same ids, or null
  std::uint32_t low;    // vocabulary id of element 0
  std::uint32_t count;  // ids in the interval, at least 1
  std::uint32_t top_k;  // at least 1
  float guidance;       // finite
  float temperature;    // finite, at least 0; 0 is the plain argmax
  std::uint64_t seed;
  std::uint32_t position;
};

enum class SampleStatus : std::uint32_t { token, not_a_number, nothing_left };

struct SampleResult {
  SampleStatus status;
  std::uint32_t id;  // of the token
};

// Masks of all ones or all zeros, by integer comparison: plain loops of these vectorise everywhere.
MGPT_HOST_DEVICE std::uint32_t is_nan(float x) {
  return (bits_of(x) & 0x7FFFFFFFu) > 0x7F800000u ? ~0u : 0u;
}
MGPT_HOST_DEVICE std::uint32_t is_minus_infinity(float x) {
  return bits_of(x) == 0xFF800000u ? ~0u : 0u;
}

// Unsigned integers in the order of the numbers; -0.0 and +0.0 give one key. No number but some NaN has key 0.
MGPT_HOST_DEVICE std::uint32_t ordered_key(float x) {
  const std::uint32_t bits = bits_of(x + 0.0f);
  return bits ^ (static_cast<std::uint32_t>(static_cast<std::int32_t>(bits) >> 31) | 0x80000000u);
}

MGPT_HOST_DEVICE float value_of_key(std::uint32_t key) {
  return float_of(key ^ (static_cast<std::uint32_t>(static_cast<std::int32_t>(~key) >> 31) | 0x80000000u));
}

struct GuidedKey {
  std::uint32_t key;  // of the guided logit; 0 where the id is excluded
  std::uint32_t nan;  // not 0: a logit is not a number
};

template <class Formula>
MGPT_HOST_DEVICE GuidedKey guided_key(float c, float u, Formula formula) {
  const float g = formula(c, u);
  const std::uint32_t masked = is_minus_infinity(c) | is_minus_infinity(u);
  const std::uint32_t excluded = masked | is_minus_infinity(g);
  return {ordered_key(g) & ~excluded, is_nan(c) | is_nan(u) | (is_nan(g) & ~masked)};
}

// The guided logit by temperature (not 0) and noise, as a key again.
MGPT_HOST_DEVICE std::uint32_t score_key(std::uint32_t key, std::uint32_t id, float temperature, std::uint64_t seed,
                                         std::uint32_t position) {
  const auto seed_low = static_cast<std::uint32_t>(seed);
  const auto seed_high = static_cast<std::uint32_t>(seed >> 32);
  return ordered_key(value_of_key(key) / temperature + gumbel_of_word(noise_word(seed_low, seed_high, position, id)));
}

}  // namespace mgpt
