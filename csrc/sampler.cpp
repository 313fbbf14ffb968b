#include "sampler.h"

#include <algorithm>
#include <atomic>

#include "noise.h"
#include "philox.h"
#include "platform.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define MGPT_X86_TARGETS 1
#endif

namespace mgpt {
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

MGPT_HOST_DEVICE SampleResult sample_body(const SampleRequest& request, std::uint32_t* __restrict scratch) {
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
    best_key = std::max(best_key, key);
  }
  std::uint32_t best = 0;
  while (keys[best] != best_key) ++best;
  return {SampleStatus::token, ids[best]};
}

MGPT_HOST_DEVICE void gumbel_body(std::uint64_t seed, std::uint32_t position, const std::uint32_t* __restrict ids,
                                  std::size_t count, float* __restrict noise) {
  const auto seed_low = static_cast<std::uint32_t>(seed);
  const auto seed_high = static_cast<std::uint32_t>(seed >> 32);
  for (std::size_t i = 0; i < count; ++i) noise[i] = gumbel_of_word(noise_word(seed_low, seed_high, position, ids[i]));
}

// The bodies above, compiled once per instruction set. None of the target lists has FMA: it would change the bits.
struct Kernels {
  const char* name;
  SampleResult (*sample)(const SampleRequest&, std::uint32_t*);
  void (*gumbel)(std::uint64_t, std::uint32_t, const std::uint32_t*, std::size_t, float*);
};

#define MGPT_KERNELS(NAME, ATTRIBUTE)                                                                \
  ATTRIBUTE SampleResult sample_##NAME(const SampleRequest& request, std::uint32_t* scratch) {       \
    return sample_body(request, scratch);                                                            \
  }                                                                                                  \
  ATTRIBUTE void gumbel_##NAME(std::uint64_t seed, std::uint32_t position, const std::uint32_t* ids, \
                               std::size_t count, float* noise) {                                    \
    gumbel_body(seed, position, ids, count, noise);                                                  \
  }                                                                                                  \
  constexpr Kernels k_##NAME{#NAME, sample_##NAME, gumbel_##NAME};

MGPT_KERNELS(baseline, )
#if defined(MGPT_X86_TARGETS)
MGPT_KERNELS(avx2, __attribute__((target("avx2,bmi,bmi2,popcnt,lzcnt"))))
MGPT_KERNELS(avx512, __attribute__((target("avx512f,avx512bw,avx512cd,avx512dq,avx512vl,bmi,bmi2,popcnt,lzcnt"))))
#endif
#undef MGPT_KERNELS

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> kernels;
#if defined(MGPT_X86_TARGETS)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                    __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("lzcnt");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    kernels.push_back(&k_avx512);
  }
  if (avx2) kernels.push_back(&k_avx2);
#endif
  kernels.push_back(&k_baseline);
  return kernels;
}

std::atomic<const Kernels*>& active_kernels() {
  static std::atomic<const Kernels*> active{available_kernels().front()};
  return active;
}

}  // namespace

SampleResult sample(const SampleRequest& request) {
  thread_local std::vector<std::uint32_t> scratch;
  const std::size_t needed = 3 * std::size_t{request.count};
  if (scratch.size() < needed) scratch.resize(needed);
  return active_kernels().load(std::memory_order_relaxed)->sample(request, scratch.data());
}

void gumbel(std::uint64_t seed, std::uint32_t position, const std::uint32_t* ids, std::size_t count, float* noise) {
  active_kernels().load(std::memory_order_relaxed)->gumbel(seed, position, ids, count, noise);
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* kernels : available_kernels()) names.emplace_back(kernels->name);
  return names;
}

bool use_instruction_set(const std::string& name) {
  for (const Kernels* kernels : available_kernels()) {
    if (name == kernels->name) {
      active_kernels().store(kernels, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace mgpt
