// What the sampler computes with, compiled once per instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "sampling/draw.h"

namespace mgpt::sampling {

struct Kernels {
  // `scratch` holds three words for each id of the request.
  SampleResult (*draw)(const SampleRequest& request, std::uint32_t* scratch);

  // Standard Gumbel noise of `count` ids at a position.
  void (*noise)(std::uint64_t seed, std::uint32_t position, const std::uint32_t* ids, std::size_t count, float* noise);
};

}  // namespace mgpt::sampling
