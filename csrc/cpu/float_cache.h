// The keys and values of every layer and sequence, allocated once and exactly: nothing grows while tokens are drawn.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace mgpt {

struct FloatCacheShape {
  std::int64_t layers;
  std::int64_t kv_heads;
  std::int64_t head_dim;
  std::vector<std::int64_t> capacities;  // tokens, one a sequence
  std::int64_t element_bytes;
};

// One block per (layer, sequence, key or value): [kv_heads, capacity of the sequence, head_dim], C order, zero at
// first, 64-byte aligned. Errors: std::invalid_argument or std::out_of_range for a bad number, std::bad_alloc where
// memory is short. Not synchronised: the caller keeps two threads off one sequence.
class FloatCache {
 public:
  explicit FloatCache(FloatCacheShape shape);
  ~FloatCache();
  FloatCache(const FloatCache&) = delete;
  FloatCache& operator=(const FloatCache&) = delete;

  const FloatCacheShape& shape() const { return shape_; }
  std::int64_t sequences() const { return static_cast<std::int64_t>(shape_.capacities.size()); }
  std::size_t bytes() const { return bytes_; }
  std::int64_t capacity(std::int64_t sequence) const { return shape_.capacities[checked(sequence)]; }
  std::int64_t length(std::int64_t sequence) const { return lengths_[checked(sequence)]; }
  const std::vector<std::int64_t>& lengths() const { return lengths_; }

  void* keys(std::int64_t layer, std::int64_t sequence) const { return block(layer, sequence, 0); }
  void* values(std::int64_t layer, std::int64_t sequence) const { return block(layer, sequence, 1); }

  // The engine has written `tokens` more: the sequence gets longer.
  void append(std::int64_t sequence, std::int64_t tokens);
  // Forget what stands behind `length`.
  void rollback(std::int64_t sequence, std::int64_t length);
  // The first `length` tokens of `source` replace those of `target`, whose length becomes `length`.
  void copy_prefix(std::int64_t source, std::int64_t target, std::int64_t length);

 private:
  std::size_t checked(std::int64_t sequence) const;
  void* block(std::int64_t layer, std::int64_t sequence, std::size_t which) const;

  FloatCacheShape shape_;
  std::vector<std::int64_t> lengths_;
  std::vector<std::size_t> sequence_offsets_;  // bytes, within a layer
  std::vector<std::size_t> block_bytes_;       // of a sequence's keys, rounded up to the alignment
  std::size_t layer_bytes_ = 0;
  std::size_t bytes_ = 0;
  std::byte* memory_ = nullptr;
};

}  // namespace mgpt
