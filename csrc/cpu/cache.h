// Keys and values of sequences as the decoder's attention reads them: bytes with a scale a head and token.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/kernels.h"

namespace mgpt::cpu {

// Tokens in whole blocks, as keys are packed.
inline std::int64_t whole_blocks(std::int64_t tokens) {
  return (tokens + kChannels - 1) / kChannels * kChannels;
}

// Keys and values of several sequences, allocated once.
class Cache {
 public:
  // Throws std::invalid_argument for a negative capacity, std::bad_alloc where memory is short.
  Cache(std::int64_t layers, std::int64_t kv_heads, std::int64_t head_dim, std::vector<std::int64_t> capacities);

  std::int64_t sequences() const { return static_cast<std::int64_t>(lengths_.size()); }
  std::int64_t length(std::int64_t sequence) const { return lengths_.at(static_cast<std::size_t>(sequence)); }
  std::int64_t capacity(std::int64_t sequence) const { return capacities_.at(static_cast<std::size_t>(sequence)); }
  std::size_t bytes() const { return bytes_; }
  HeadCache head(std::int64_t layer, std::int64_t sequence, std::int64_t head) const;

  void append(std::int64_t sequence, std::int64_t tokens);
  // Forgets what stands behind `length`. Throws std::out_of_range if it is not within the sequence.
  void rollback(std::int64_t sequence, std::int64_t length);
  // The first `length` tokens of `source` replace those of `target`.
  void copy_prefix(std::int64_t source, std::int64_t target, std::int64_t length);

 private:
  struct Free {
    void operator()(std::byte* memory) const;
  };
  std::int64_t layers_, kv_heads_, head_dim_;
  std::vector<std::int64_t> capacities_, lengths_;
  std::vector<std::size_t> offsets_;  // of a sequence, within a layer
  std::vector<std::int64_t> padded_;  // capacities in whole blocks of tokens
  std::size_t layer_bytes_ = 0, bytes_ = 0;
  std::unique_ptr<std::byte, Free> memory_;
};

}  // namespace mgpt::cpu
