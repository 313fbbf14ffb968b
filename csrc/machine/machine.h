// What this machine can do: instruction sets, and the speed at which memory is read.
#pragma once

#include <cstddef>
#include <map>
#include <string>

namespace mgpt {

// avx2, bmi2, avx512f, avx512bw, avx512dq, avx512vl, avx512_vnni, avx_vnni, amx_int8, neon, dotprod: true where both
// the CPU and the operating system allow it.
std::map<std::string, bool> cpu_features();

// Bytes read per second by `threads` threads that together go through a buffer of `bytes` again and again for
// `seconds`. Throws std::bad_alloc, or std::system_error where a thread cannot start.
double read_bandwidth(std::size_t bytes, std::size_t threads, double seconds);

}  // namespace mgpt
