// One token from one position's logits: guidance, interval, top-k, noise and argmax in one pass over the interval.
// runtime/sampling/specification.py is the specification; every instruction set gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "sampling/draw.h"

namespace mgpt {

// Keeps a scratch buffer per thread that only grows: throws std::bad_alloc when it cannot.
SampleResult sample(const SampleRequest& request);

// Standard Gumbel noise of `count` ids at a position.
void gumbel(std::uint64_t seed, std::uint32_t position, const std::uint32_t* ids, std::size_t count, float* noise);

// Picks one of `instruction_sets()` for all threads; false if it is none of them.
bool use_instruction_set(std::string_view set);

}  // namespace mgpt
