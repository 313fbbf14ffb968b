#include "cpu/cache.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

namespace mgpt::cpu {
namespace {

constexpr std::size_t kAlignment = 64;

}  // namespace

void Cache::Free::operator()(std::byte* memory) const {
  ::operator delete[](memory, std::align_val_t{kAlignment});
}

Cache::Cache(std::int64_t layers, std::int64_t kv_heads, std::int64_t head_dim, std::vector<std::int64_t> capacities)
    : layers_(layers),
      kv_heads_(kv_heads),
      head_dim_(head_dim),
      capacities_(std::move(capacities)),
      lengths_(capacities_.size(), 0) {
  for (const std::int64_t capacity : capacities_) {
    if (capacity < 0) throw std::invalid_argument("capacities must not be negative");
    const std::int64_t padded = whole_blocks(capacity);
    padded_.push_back(padded);
    offsets_.push_back(layer_bytes_);
    // Keys and values, then a scale each; all of them multiples of 64 bytes.
    layer_bytes_ += static_cast<std::size_t>(kv_heads_ * padded * (2 * head_dim_ + 8));
  }
  bytes_ = layer_bytes_ * static_cast<std::size_t>(layers_);
  memory_.reset(new (std::align_val_t{kAlignment}) std::byte[std::max<std::size_t>(bytes_, 1)]);
  std::memset(memory_.get(), 0, bytes_);
}

HeadCache Cache::head(std::int64_t layer, std::int64_t sequence, std::int64_t head) const {
  const auto index = static_cast<std::size_t>(sequence);
  const std::int64_t padded = padded_[index];
  const auto bytes = static_cast<std::size_t>(padded * (2 * head_dim_ + 8));
  std::byte* start = memory_.get() + static_cast<std::size_t>(layer) * layer_bytes_ + offsets_[index] +
                     static_cast<std::size_t>(head) * bytes;
  auto* keys = reinterpret_cast<std::uint8_t*>(start);
  auto* values = reinterpret_cast<std::int8_t*>(keys + padded * head_dim_);
  auto* key_scales = reinterpret_cast<float*>(values + padded * head_dim_);
  return {keys, key_scales, values, key_scales + padded};
}

void Cache::append(std::int64_t sequence, std::int64_t tokens) {
  const auto index = static_cast<std::size_t>(sequence);
  if (tokens < 0 || lengths_.at(index) + tokens > capacities_[index]) {
    throw std::out_of_range("sequence " + std::to_string(sequence) + " holds " + std::to_string(capacities_[index]) +
                            " tokens, " + std::to_string(lengths_[index]) + " + " + std::to_string(tokens) +
                            " do not fit");
  }
  lengths_[index] += tokens;
}

void Cache::rollback(std::int64_t sequence, std::int64_t length) {
  const auto index = static_cast<std::size_t>(sequence);
  if (length < 0 || length > lengths_.at(index)) {
    throw std::out_of_range("sequence " + std::to_string(sequence) + " has " + std::to_string(lengths_.at(index)) +
                            " tokens, can't go back to " + std::to_string(length));
  }
  lengths_[index] = length;
}

void Cache::copy_prefix(std::int64_t source, std::int64_t target, std::int64_t length) {
  if (length < 0 || length > this->length(source) || length > capacity(target)) {
    throw std::out_of_range("a prefix of " + std::to_string(length) + " tokens is not within sequences " +
                            std::to_string(source) + " and " + std::to_string(target));
  }
  if (source == target) return rollback(target, length);
  const auto tokens = static_cast<std::size_t>(whole_blocks(length));
  const auto dim = static_cast<std::size_t>(head_dim_);
  for (std::int64_t layer = 0; layer < layers_; ++layer) {
    for (std::int64_t head = 0; head < kv_heads_; ++head) {
      const HeadCache from = this->head(layer, source, head), to = this->head(layer, target, head);
      std::memcpy(to.keys, from.keys, tokens * dim);
      std::memcpy(to.values, from.values, tokens * dim);
      std::memcpy(to.key_scales, from.key_scales, tokens * sizeof(float));
      std::memcpy(to.value_scales, from.value_scales, tokens * sizeof(float));
    }
  }
  lengths_[static_cast<std::size_t>(target)] = length;
}

}  // namespace mgpt::cpu
