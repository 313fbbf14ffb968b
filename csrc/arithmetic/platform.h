// What lets one header serve the CPU build and the CUDA build.
#pragma once

#include <cstdint>
#include <cstring>

// always_inline on the host: the sampler inlines these functions into one copy per instruction set, so no copy compiled
// for a newer CPU can be picked by the linker for an older one.
#if defined(__CUDACC__)
#define MGPT_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define MGPT_HOST_DEVICE inline __attribute__((always_inline))
#else
#define MGPT_HOST_DEVICE inline
#endif

// Of a team of threads: device code under nvcc, plain code for the teams that the tests make of CPU threads.
#if defined(__CUDACC__)
#define MGPT_TEAM __device__ __forceinline__
#else
#define MGPT_TEAM inline
#endif

namespace mgpt {

MGPT_HOST_DEVICE std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

MGPT_HOST_DEVICE float float_of(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace mgpt
