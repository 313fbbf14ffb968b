// The CUDA kernels as a C library, for ctypes and for engines in any language. Pointers are to device memory where it
// says so; each call launches one kernel on `stream` and doesn't wait, so it can be captured in a CUDA graph. Returns
// a cudaError_t: 0 where the kernel was launched, cudaErrorInvalidValue for a number that no kernel takes.
#pragma once

#include <cstdint>

#include "sampling/draw.h"
#include "sampling/picture_step.h"

#if defined(__GNUC__)
#define MGPT_API extern "C" __attribute__((visibility("default")))
#else
#define MGPT_API extern "C"
#endif

struct CUstream_st;  // cudaStream_t is a pointer to it

namespace mgpt {

using Stream = CUstream_st*;

enum class CacheFormat : std::uint32_t { half, int8, e4m3 };

// Keys or values of one layer. All of it device memory, each pointer a multiple of 16 bytes.
struct CacheBlock {
  const void* fresh;  // half [rows, heads, width, dim]: what the last pass computed
  void* cache;        // [rows, heads, capacity, dim]
  float* scales;      // [rows, heads, capacity] for int8, else null
};

struct CacheShape {
  std::uint32_t rows;
  std::uint32_t heads;
  std::uint32_t capacity;  // tokens a row
  std::uint32_t dim;       // a multiple of 16
  std::uint32_t width;     // tokens a row in a pass
  CacheFormat format;
};

}  // namespace mgpt

// Draws `count` tokens, each by a block of its own. Both arrays on the device, as are the logits of the requests.
MGPT_API int mgpt_cuda_sample(const mgpt::SampleRequest* requests, std::uint32_t count, mgpt::SampleResult* results,
                              mgpt::Stream stream);

// One step of `count` pictures. `all` is read during the call, what it points at lies on the device.
MGPT_API int mgpt_cuda_step(const mgpt::Pictures* all, std::uint32_t count, mgpt::Stream stream);

// Forgets one picture's tokens from index `next`, at least 1, on, and writes its feed, whose lengths are all that the
// caches need to go back. Also how a picture begins whose first tokens the host has written.
MGPT_API int mgpt_cuda_roll_back(const mgpt::Pictures* all, std::uint32_t picture, std::uint32_t next,
                                 mgpt::Stream stream);

// The fresh keys and values of `blocks` [count], on the device, take their places: those of the tokens from
// lengths[row] up to totals[row] (Feed), which must fit the capacity.
MGPT_API int mgpt_cuda_append(const mgpt::CacheBlock* blocks, std::uint32_t count, const mgpt::CacheShape* shape,
                              const std::int32_t* lengths, const std::int32_t* totals, mgpt::Stream stream);

// The first `length` tokens of row `source` replace those of row `target` in all blocks.
MGPT_API int mgpt_cuda_copy_prefix(const mgpt::CacheBlock* blocks, std::uint32_t count, const mgpt::CacheShape* shape,
                                   std::uint32_t source, std::uint32_t target, std::uint32_t length,
                                   mgpt::Stream stream);

// out [count, row_bytes] = table [., row_bytes] at `tokens` [count]: embeddings of any element type whose rows are a
// multiple of 16 bytes. All on the device.
MGPT_API int mgpt_cuda_embed(const void* table, const std::int32_t* tokens, std::uint32_t count,
                             std::uint32_t row_bytes, void* out, mgpt::Stream stream);

// What an error number of these calls means.
MGPT_API const char* mgpt_cuda_error(int error);
