// One token from one position's logits: guidance, interval, top-k, noise and argmax in one pass over the interval.
// runtime/sampling_reference.py is the specification; every instruction set gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

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

enum class SampleStatus { token, not_a_number, nothing_left };

struct SampleResult {
  SampleStatus status;
  std::uint32_t id;  // of the token
};

// Keeps a scratch buffer per thread that only grows: throws std::bad_alloc when it cannot.
SampleResult sample(const SampleRequest& request);

// Standard Gumbel noise of `count` ids at a position.
void gumbel(std::uint64_t seed, std::uint32_t position, const std::uint32_t* ids, std::size_t count, float* noise);

// The instruction sets this CPU can run, the fastest first; `use_instruction_set` picks one for all threads (false: not
// here).
std::vector<std::string> instruction_sets();
bool use_instruction_set(const std::string& name);

}  // namespace mgpt
