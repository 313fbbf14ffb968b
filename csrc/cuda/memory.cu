// Keys, values and embeddings on their way: append, prefix copy, look-up. All of them move bytes and little else.
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "cuda/kv_format.h"
#include "cuda/mgpt_cuda.h"

namespace mgpt {
namespace {

constexpr std::uint32_t kLanes = 32;
constexpr std::uint32_t kWarps = 8;
constexpr std::uint32_t kThreads = kWarps * kLanes;
constexpr std::uint32_t kMostGridY = 65535;
constexpr std::uint32_t kChunk = 4;  // elements a lane takes at once

struct Four {
  float x[kChunk];
};

__device__ Four load_four(const __half* from) {
  const uint2 raw = *reinterpret_cast<const uint2*>(from);
  __half2 low, high;
  memcpy(&low, &raw.x, sizeof low);
  memcpy(&high, &raw.y, sizeof high);
  const float2 a = __half22float2(low), b = __half22float2(high);
  return {{a.x, a.y, b.x, b.y}};
}

// One lane's part of a row of `dim` halves in each format.
__device__ void store_half(const __half* fresh, std::uint32_t dim, std::uint32_t lane, void* row) {
  auto* to = static_cast<__half*>(row);
  for (std::uint32_t i = lane * kChunk; i < dim; i += kLanes * kChunk) {
    *reinterpret_cast<uint2*>(to + i) = *reinterpret_cast<const uint2*>(fresh + i);
  }
}

__device__ void store_e4m3(const __half* fresh, std::uint32_t dim, std::uint32_t lane, void* row) {
  auto* to = static_cast<std::uint8_t*>(row);
  for (std::uint32_t i = lane * kChunk; i < dim; i += kLanes * kChunk) {
    const Four f = load_four(fresh + i);
    *reinterpret_cast<uchar4*>(to + i) =
        make_uchar4(to_e4m3(f.x[0]), to_e4m3(f.x[1]), to_e4m3(f.x[2]), to_e4m3(f.x[3]));
  }
}

__device__ void store_int8(const __half* fresh, std::uint32_t dim, std::uint32_t lane, void* row, float* scale_at) {
  std::uint32_t largest = 0;
  for (std::uint32_t i = lane * kChunk; i < dim; i += kLanes * kChunk) {
    const Four f = load_four(fresh + i);
    for (const float x : f.x) largest = max(largest, magnitude_bits(x));
  }
  const float scale = int8_scale(__reduce_max_sync(0xFFFFFFFFu, largest));
  if (lane == 0) *scale_at = scale;
  auto* to = static_cast<std::int8_t*>(row);
  for (std::uint32_t i = lane * kChunk; i < dim; i += kLanes * kChunk) {
    const Four f = load_four(fresh + i);
    *reinterpret_cast<char4*>(to + i) =
        make_char4(to_int8(f.x[0], scale), to_int8(f.x[1], scale), to_int8(f.x[2], scale), to_int8(f.x[3], scale));
  }
}

// A warp per head of a token: grid (heads * width / kWarps, rows, blocks).
template <CacheFormat format>
__global__ void __launch_bounds__(kThreads) append_kernel(const CacheBlock* blocks, const CacheShape shape,
                                                          const std::int32_t* lengths, const std::int32_t* totals) {
  const std::uint32_t index = blockIdx.x * kWarps + threadIdx.x / kLanes;
  const std::uint32_t lane = threadIdx.x % kLanes;
  const std::uint32_t row = blockIdx.y;
  const std::uint32_t head = index / shape.width;
  const std::uint32_t token = index % shape.width;
  const auto length = static_cast<std::uint32_t>(lengths[row]);
  if (head >= shape.heads || token >= static_cast<std::uint32_t>(totals[row]) - length) return;
  const CacheBlock block = blocks[blockIdx.z];
  const std::size_t line = std::size_t{row} * shape.heads + head;
  const std::size_t place = line * shape.capacity + length + token;
  const auto* fresh = static_cast<const __half*>(block.fresh) + (line * shape.width + token) * shape.dim;
  constexpr std::size_t kBytes = format == CacheFormat::half ? 2 : 1;
  void* to = static_cast<std::uint8_t*>(block.cache) + place * shape.dim * kBytes;
  if constexpr (format == CacheFormat::half) store_half(fresh, shape.dim, lane, to);
  if constexpr (format == CacheFormat::e4m3) store_e4m3(fresh, shape.dim, lane, to);
  if constexpr (format == CacheFormat::int8) store_int8(fresh, shape.dim, lane, to, block.scales + place);
}

// Grid (any, heads, blocks): the tokens of one head lie together.
__global__ void __launch_bounds__(kThreads)
    copy_kernel(const CacheBlock* blocks, const CacheShape shape, std::uint32_t source, std::uint32_t target,
                std::uint32_t length) {
  const CacheBlock block = blocks[blockIdx.z];
  const std::size_t from = (std::size_t{source} * shape.heads + blockIdx.y) * shape.capacity;
  const std::size_t to = (std::size_t{target} * shape.heads + blockIdx.y) * shape.capacity;
  const std::size_t vectors = std::size_t{shape.dim} * (shape.format == CacheFormat::half ? 2 : 1) / sizeof(uint4);
  const auto* read = static_cast<const uint4*>(block.cache) + from * vectors;
  auto* write = static_cast<uint4*>(block.cache) + to * vectors;
  const std::size_t first = std::size_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::size_t stride = std::size_t{gridDim.x} * kThreads;
  for (std::size_t i = first; i < length * vectors; i += stride) write[i] = read[i];
  if (block.scales == nullptr) return;
  for (std::size_t i = first; i < length; i += stride) block.scales[to + i] = block.scales[from + i];
}

__global__ void __launch_bounds__(kThreads)
    embed_kernel(const uint4* table, const std::int32_t* tokens, std::uint32_t vectors, uint4* out) {
  const uint4* from = table + static_cast<std::size_t>(tokens[blockIdx.x]) * vectors;
  uint4* to = out + std::size_t{blockIdx.x} * vectors;
  for (std::uint32_t i = threadIdx.x; i < vectors; i += kThreads) to[i] = from[i];
}

bool valid(const CacheShape& shape, std::uint32_t blocks) {
  return blocks >= 1 && blocks <= kMostGridY && shape.rows >= 1 && shape.rows <= kMostGridY && shape.heads >= 1 &&
         shape.heads <= kMostGridY && shape.capacity >= 1 && shape.dim >= 16 && shape.dim % 16 == 0 &&
         shape.width >= 1 && shape.format <= CacheFormat::e4m3;
}

}  // namespace
}  // namespace mgpt

int mgpt_cuda_append(const mgpt::CacheBlock* blocks, std::uint32_t count, const mgpt::CacheShape* shape,
                     const std::int32_t* lengths, const std::int32_t* totals, mgpt::Stream stream) {
  using mgpt::CacheFormat;
  if (!mgpt::valid(*shape, count)) return cudaErrorInvalidValue;
  const dim3 grid((shape->heads * shape->width + mgpt::kWarps - 1) / mgpt::kWarps, shape->rows, count);
  const auto kernel = shape->format == CacheFormat::half   ? mgpt::append_kernel<CacheFormat::half>
                      : shape->format == CacheFormat::int8 ? mgpt::append_kernel<CacheFormat::int8>
                                                           : mgpt::append_kernel<CacheFormat::e4m3>;
  kernel<<<grid, mgpt::kThreads, 0, stream>>>(blocks, *shape, lengths, totals);
  return cudaGetLastError();
}

int mgpt_cuda_copy_prefix(const mgpt::CacheBlock* blocks, std::uint32_t count, const mgpt::CacheShape* shape,
                          std::uint32_t source, std::uint32_t target, std::uint32_t length, mgpt::Stream stream) {
  if (!mgpt::valid(*shape, count) || source >= shape->rows || target >= shape->rows || source == target ||
      length == 0 || length > shape->capacity) {
    return cudaErrorInvalidValue;
  }
  constexpr std::uint32_t kTokens = 128;  // of a head for one block of threads
  const dim3 grid((length + kTokens - 1) / kTokens, shape->heads, count);
  mgpt::copy_kernel<<<grid, mgpt::kThreads, 0, stream>>>(blocks, *shape, source, target, length);
  return cudaGetLastError();
}

int mgpt_cuda_embed(const void* table, const std::int32_t* tokens, std::uint32_t count, std::uint32_t row_bytes,
                    void* out, mgpt::Stream stream) {
  if (count == 0 || row_bytes == 0 || row_bytes % sizeof(uint4) != 0) return cudaErrorInvalidValue;
  mgpt::embed_kernel<<<count, mgpt::kThreads, 0, stream>>>(static_cast<const uint4*>(table), tokens,
                                                           row_bytes / static_cast<std::uint32_t>(sizeof(uint4)),
                                                           static_cast<uint4*>(out));
  return cudaGetLastError();
}
