// One token from one position's logits: guidance, interval, top-k, noise and argmax in one pass over the interval.
// runtime/sampling_reference.py is the specification; every instruction set gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "draw.h"

namespace mgpt {

// Keeps a scratch buffer per thread that only grows: throws std::bad_alloc when it cannot.
SampleResult sample(const SampleRequest& request);

// Standard Gumbel noise of `count` ids at a position.
void gumbel(std::uint64_t seed, std::uint32_t position, const std::uint32_t* ids, std::size_t count, float* noise);

// The instruction sets this CPU can run, the fastest first; `use_instruction_set` picks one for all threads (false: not
// here).
std::vector<std::string> instruction_sets();
bool use_instruction_set(const std::string& name);

}  // namespace mgpt
