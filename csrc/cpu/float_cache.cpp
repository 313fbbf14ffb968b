#include "cpu/float_cache.h"

#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#define MGPT_HAS_MMAP 1
#include <sys/mman.h>
#endif

namespace mgpt {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

std::size_t at_least_one(std::int64_t number, const char* name) {
  if (number < 1) throw std::invalid_argument(std::string(name) + " must be at least 1, got " + std::to_string(number));
  return static_cast<std::size_t>(number);
}

std::size_t product(std::size_t a, std::size_t b) {
  // Half of the address space: sums of two of these cannot wrap around either.
  if (b != 0 && a > std::numeric_limits<std::size_t>::max() / 2 / b) throw std::bad_alloc();
  return a * b;
}

std::size_t sum(std::size_t a, std::size_t b) {
  if (a > std::numeric_limits<std::size_t>::max() / 2 - b) throw std::bad_alloc();
  return a + b;
}

// Zeroed memory. Pages become resident when they are first written, so short pictures do not pay for long sequences.
std::byte* allocate(std::size_t bytes) {
#if defined(MGPT_HAS_MMAP)
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  if (bytes >= kHugePage) madvise(memory, bytes, MADV_HUGEPAGE);  // a hint: its failure costs nothing
#endif
#else
  void* memory = ::operator new(bytes, std::align_val_t{kAlignment});
  std::memset(memory, 0, bytes);
#endif
  return static_cast<std::byte*>(memory);
}

void release(std::byte* memory, std::size_t bytes) {
#if defined(MGPT_HAS_MMAP)
  munmap(memory, bytes);
#else
  (void)bytes;
  ::operator delete(memory, std::align_val_t{kAlignment});
#endif
}

}  // namespace

FloatCache::FloatCache(FloatCacheShape shape) : shape_(std::move(shape)), lengths_(shape_.capacities.size(), 0) {
  const std::size_t layers = at_least_one(shape_.layers, "layers");
  const std::size_t heads = at_least_one(shape_.kv_heads, "kv_heads");
  const std::size_t head_dim = at_least_one(shape_.head_dim, "head_dim");
  const std::size_t element_bytes = at_least_one(shape_.element_bytes, "element_bytes");
  if (shape_.capacities.empty()) throw std::invalid_argument("capacities must name at least one sequence, got none");
  for (const std::int64_t capacity : shape_.capacities) {
    const std::size_t tokens = at_least_one(capacity, "capacity");
    const std::size_t exact = product(product(product(heads, tokens), head_dim), element_bytes);
    const std::size_t block = sum(exact, kAlignment - 1) / kAlignment * kAlignment;
    sequence_offsets_.push_back(layer_bytes_);
    block_bytes_.push_back(block);
    layer_bytes_ = sum(layer_bytes_, product(block, 2));
  }
  bytes_ = product(layer_bytes_, layers);
  memory_ = allocate(bytes_);
}

FloatCache::~FloatCache() {
  release(memory_, bytes_);
}

std::size_t FloatCache::checked(std::int64_t sequence) const {
  if (sequence < 0 || sequence >= sequences()) {
    throw std::out_of_range("sequence must be in [0, " + std::to_string(sequences()) + "), got " +
                            std::to_string(sequence));
  }
  return static_cast<std::size_t>(sequence);
}

void* FloatCache::block(std::int64_t layer, std::int64_t sequence, std::size_t which) const {
  if (layer < 0 || layer >= shape_.layers) {
    throw std::out_of_range("layer must be in [0, " + std::to_string(shape_.layers) + "), got " +
                            std::to_string(layer));
  }
  const std::size_t index = checked(sequence);
  return memory_ + static_cast<std::size_t>(layer) * layer_bytes_ + sequence_offsets_[index] +
         which * block_bytes_[index];
}

void FloatCache::append(std::int64_t sequence, std::int64_t tokens) {
  const std::size_t index = checked(sequence);
  const std::int64_t room = shape_.capacities[index] - lengths_[index];
  if (tokens < 0 || tokens > room) {
    throw std::invalid_argument("sequence " + std::to_string(sequence) + " has room for " + std::to_string(room) +
                                " of " + std::to_string(shape_.capacities[index]) + " tokens, got " +
                                std::to_string(tokens) + " to append");
  }
  lengths_[index] += tokens;
}

void FloatCache::rollback(std::int64_t sequence, std::int64_t length) {
  const std::size_t index = checked(sequence);
  if (length < 0 || length > lengths_[index]) {
    throw std::invalid_argument("sequence " + std::to_string(sequence) + " holds " + std::to_string(lengths_[index]) +
                                " tokens and cannot roll back to " + std::to_string(length));
  }
  lengths_[index] = length;
}

void FloatCache::copy_prefix(std::int64_t source, std::int64_t target, std::int64_t length) {
  const std::size_t from = checked(source);
  const std::size_t to = checked(target);
  if (length < 0 || length > lengths_[from] || length > shape_.capacities[to]) {
    throw std::invalid_argument("cannot copy " + std::to_string(length) + " tokens: sequence " +
                                std::to_string(source) + " holds " + std::to_string(lengths_[from]) + ", sequence " +
                                std::to_string(target) + " has a capacity of " + std::to_string(shape_.capacities[to]));
  }
  lengths_[to] = length;
  if (from == to || length == 0) return;
  const auto token_bytes = static_cast<std::size_t>(shape_.head_dim * shape_.element_bytes);
  const std::size_t from_stride = static_cast<std::size_t>(shape_.capacities[from]) * token_bytes;
  const std::size_t to_stride = static_cast<std::size_t>(shape_.capacities[to]) * token_bytes;
  const std::size_t prefix_bytes = static_cast<std::size_t>(length) * token_bytes;
  for (std::int64_t layer = 0; layer < shape_.layers; ++layer) {
    for (std::size_t which = 0; which < 2; ++which) {
      const auto* read = static_cast<const std::byte*>(block(layer, source, which));
      auto* write = static_cast<std::byte*>(block(layer, target, which));
      for (std::int64_t head = 0; head < shape_.kv_heads; ++head, read += from_stride, write += to_stride) {
        std::memcpy(write, read, prefix_bytes);
      }
    }
  }
}

}  // namespace mgpt
