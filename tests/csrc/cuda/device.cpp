// The library of CUDA kernels for the CPU, which tests compile: the algorithms are those of the shared headers, a team
// is one thread, and all memory is the host's. What checks the kernels on a GPU is itself checked with it.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cuda/kv_format.h"
#include "cuda/mgpt_cuda.h"
#include "sampling/block_draw.h"
#include "sampling/picture_step.h"

namespace {

struct Alone {
  static constexpr std::uint32_t kThreads = 1;
  static constexpr std::uint32_t kLanes = 1;
  std::uint32_t rank() const { return 0; }
  std::uint32_t lane() const { return 0; }
  void sync() const {}
  void sync_lanes() const {}
  bool any(bool x) const { return x; }
  void increment(std::uint32_t* counter) const { ++*counter; }
  std::uint32_t sum_before(std::uint32_t) const { return 0; }
  std::uint64_t largest(std::uint64_t x) const { return x; }
  mgpt::Places places(bool x) const { return {0, x ? 1u : 0u}; }
};

}  // namespace

namespace {

constexpr int kInvalid = 1;  // cudaErrorInvalidValue

std::size_t element_bytes(const mgpt::CacheShape& shape) {
  return shape.format == mgpt::CacheFormat::half ? 2 : 1;
}

// A head's key or value of one token: dim halves -> the cache's format.
void store(const _Float16* fresh, const mgpt::CacheShape& shape, std::uint8_t* to, float* scale) {
  if (shape.format == mgpt::CacheFormat::half) std::memcpy(to, fresh, shape.dim * sizeof *fresh);
  if (shape.format == mgpt::CacheFormat::e4m3) {
    for (std::uint32_t i = 0; i < shape.dim; ++i) to[i] = mgpt::to_e4m3(static_cast<float>(fresh[i]));
  }
  if (shape.format != mgpt::CacheFormat::int8) return;
  std::uint32_t largest = 0;
  for (std::uint32_t i = 0; i < shape.dim; ++i) {
    largest = std::max(largest, mgpt::magnitude_bits(static_cast<float>(fresh[i])));
  }
  *scale = mgpt::int8_scale(largest);
  for (std::uint32_t i = 0; i < shape.dim; ++i) {
    to[i] = static_cast<std::uint8_t>(mgpt::to_int8(static_cast<float>(fresh[i]), *scale));
  }
}

void append_row(const mgpt::CacheBlock& block, const mgpt::CacheShape& shape, std::uint32_t row, std::uint32_t length,
                std::uint32_t fresh_tokens) {
  for (std::uint32_t head = 0; head < shape.heads; ++head) {
    const std::size_t line = std::size_t{row} * shape.heads + head;
    for (std::uint32_t token = 0; token < fresh_tokens; ++token) {
      const std::size_t place = line * shape.capacity + length + token;
      store(static_cast<const _Float16*>(block.fresh) + (line * shape.width + token) * shape.dim, shape,
            static_cast<std::uint8_t*>(block.cache) + place * shape.dim * element_bytes(shape),
            block.scales == nullptr ? nullptr : block.scales + place);
    }
  }
}

}  // namespace

int mgpt_cuda_sample(const mgpt::SampleRequest* requests, std::uint32_t count, mgpt::SampleResult* results,
                     mgpt::Stream) {
  mgpt::DrawScratch<Alone> scratch;
  for (std::uint32_t i = 0; i < count; ++i) results[i] = mgpt::draw(Alone{}, requests[i], scratch);
  return count == 0 ? kInvalid : 0;
}

int mgpt_cuda_step(const mgpt::Pictures* all, std::uint32_t count, mgpt::Stream) {
  mgpt::DrawScratch<Alone> scratch;
  for (std::uint32_t i = 0; i < count; ++i) mgpt::step(Alone{}, *all, i, scratch);
  return count == 0 ? kInvalid : 0;
}

int mgpt_cuda_roll_back(const mgpt::Pictures* all, std::uint32_t picture, std::uint32_t next, mgpt::Stream) {
  if (next == 0) return kInvalid;
  mgpt::go_back(next, all->cursors[picture]);
  mgpt::write_feed(*all, picture, all->cursors[picture]);
  return 0;
}

int mgpt_cuda_append(const mgpt::CacheBlock* blocks, std::uint32_t count, const mgpt::CacheShape* shape,
                     const std::int32_t* lengths, const std::int32_t* totals, mgpt::Stream) {
  if (shape->dim == 0 || shape->dim % 16 != 0) return kInvalid;
  for (std::uint32_t i = 0; i < count; ++i) {
    for (std::uint32_t row = 0; row < shape->rows; ++row) {
      append_row(blocks[i], *shape, row, static_cast<std::uint32_t>(lengths[row]),
                 static_cast<std::uint32_t>(totals[row] - lengths[row]));
    }
  }
  return 0;
}

int mgpt_cuda_copy_prefix(const mgpt::CacheBlock* blocks, std::uint32_t count, const mgpt::CacheShape* shape,
                          std::uint32_t source, std::uint32_t target, std::uint32_t length, mgpt::Stream) {
  if (source >= shape->rows || target >= shape->rows || source == target || length == 0 || length > shape->capacity) {
    return kInvalid;
  }
  const std::size_t token = shape->dim * element_bytes(*shape);
  for (std::uint32_t i = 0; i < count; ++i) {
    for (std::uint32_t head = 0; head < shape->heads; ++head) {
      const std::size_t from = (std::size_t{source} * shape->heads + head) * shape->capacity;
      const std::size_t to = (std::size_t{target} * shape->heads + head) * shape->capacity;
      auto* cache = static_cast<std::uint8_t*>(blocks[i].cache);
      std::memcpy(cache + to * token, cache + from * token, length * token);
      if (blocks[i].scales != nullptr) std::copy_n(blocks[i].scales + from, length, blocks[i].scales + to);
    }
  }
  return 0;
}

int mgpt_cuda_embed(const void* table, const std::int32_t* tokens, std::uint32_t count, std::uint32_t row_bytes,
                    void* out, mgpt::Stream) {
  if (count == 0 || row_bytes == 0 || row_bytes % 16 != 0) return kInvalid;
  for (std::uint32_t i = 0; i < count; ++i) {
    std::memcpy(static_cast<std::uint8_t*>(out) + std::size_t{i} * row_bytes,
                static_cast<const std::uint8_t*>(table) + static_cast<std::size_t>(tokens[i]) * row_bytes, row_bytes);
  }
  return 0;
}

const char* mgpt_cuda_error(int error) {
  return error == 0 ? "no error" : "invalid argument";
}
