#include "cpu/decoder.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "arithmetic/float_mode.h"

namespace mgpt::cpu {
namespace {

constexpr std::int64_t kTokensAtOnce = 64;  // longer passes are cut: the workspace stays small

}  // namespace

struct Decoder::Workspace {
  std::vector<float> stream;       // [tokens, hidden]: every member keeps the residual stream itself
  std::vector<float> normalised;   // [tokens, hidden]
  std::vector<float> projected;    // [tokens, channels of this member]
  std::vector<float> scores;       // [capacity of the longest sequence]
  std::vector<std::int8_t> bytes;  // [tokens, widest input]
  std::vector<float> scales;       // [tokens, groups of the widest input]
  std::vector<std::int32_t> sums;  // the same
};

Decoder::Decoder(Model model, int threads, const Kernels& kernels)
    : model_(std::move(model)), kernels_(kernels), team_(threads) {
  const Dimensions& d = model_.dimensions;
  const auto tokens = static_cast<std::size_t>(kTokensAtOnce);
  const std::int64_t mixed = d.heads * d.head_dim;
  const std::int64_t widest = std::max({d.hidden, mixed, d.intermediate});
  for (int member = 0; member < threads; ++member) {
    // Its largest share is that of a team in which it is the last. Of logits every member computes a block at a time at
    // least, also where there are more members than heads.
    const std::int64_t heads = d.kv_heads / (member + 1) + 1, ffn = d.intermediate / kChannels / (member + 1) + 1;
    const std::int64_t channels =
        std::max({heads * (d.heads / d.kv_heads + 2) * d.head_dim, ffn * 2 * kChannels, kChannels});
    auto work = std::make_unique<Workspace>();
    work->stream.resize(tokens * static_cast<std::size_t>(d.hidden));
    work->normalised.resize(tokens * static_cast<std::size_t>(d.hidden));
    work->projected.resize(tokens * static_cast<std::size_t>(channels));
    work->bytes.resize(tokens * static_cast<std::size_t>(widest));
    work->scales.resize(tokens * static_cast<std::size_t>(widest / kGroup + 1));
    work->sums.resize(tokens * static_cast<std::size_t>(widest / kGroup + 1));
    work_.push_back(std::move(work));
  }
  mixed_.resize(tokens * static_cast<std::size_t>(mixed));
  gated_.resize(tokens * static_cast<std::size_t>(d.intermediate));
  delta_.resize(tokens * static_cast<std::size_t>(d.hidden));
}

Decoder::~Decoder() = default;

void Decoder::forward(Cache& cache, std::span<const Segment> segments, std::int64_t low, std::int64_t high,
                      float* out) {
  check(cache, segments, low, high);
  const std::int64_t wanted = feed(cache, segments);
  logits(hidden_.data(), wanted, low, high, out);
}

void Decoder::check(const Cache& cache, std::span<const Segment> segments, std::int64_t low, std::int64_t high) const {
  const std::int64_t vocabulary = model_.dimensions.vocabulary;
  if (low < 0 || high > vocabulary || low >= high) {
    throw std::out_of_range("ids [" + std::to_string(low) + ", " + std::to_string(high) +
                            ") are not within the vocabulary of " + std::to_string(vocabulary));
  }
  for (const Segment& segment : segments) {
    const auto of_sequence = [&](const Segment& other) { return other.sequence == segment.sequence; };
    if (std::ranges::count_if(segments, of_sequence) != 1) {
      throw std::invalid_argument("sequence " + std::to_string(segment.sequence) + " is fed twice in one pass");
    }
    const std::int64_t room = std::min(cache.capacity(segment.sequence), model_.positions);
    const std::int64_t end = cache.length(segment.sequence) + static_cast<std::int64_t>(segment.tokens.size());
    if (end > room) {
      throw std::out_of_range("sequence " + std::to_string(segment.sequence) + " holds " + std::to_string(room) +
                              " tokens, " + std::to_string(end) + " do not fit");
    }
    for (const std::int64_t id : segment.tokens) {
      if (id >= 0 && id < vocabulary) continue;
      throw std::out_of_range("token " + std::to_string(id) + " is not within the vocabulary of " +
                              std::to_string(vocabulary));
    }
  }
}

// Runs the tokens through the layers; how many of them are wanted, their hidden states first in `hidden_`.
std::int64_t Decoder::feed(Cache& cache, std::span<const Segment> segments) {
  const auto hidden = static_cast<std::size_t>(model_.dimensions.hidden);
  std::int64_t longest = 0;
  tokens_.clear();
  for (const Segment& segment : segments) {
    std::int64_t position = cache.length(segment.sequence);
    for (const std::int64_t id : segment.tokens) tokens_.push_back({segment.sequence, position++, id});
    longest = std::max(longest, position);
  }
  for (auto& work : work_) {
    const auto needed = static_cast<std::size_t>(scratch_floats(longest));
    if (work->scores.size() < needed) work->scores.resize(needed);
  }
  if (hidden_.size() < tokens_.size() * hidden) hidden_.resize(tokens_.size() * hidden);
  for (std::size_t start = 0; start < tokens_.size(); start += static_cast<std::size_t>(kTokensAtOnce)) {
    const std::size_t count = std::min(tokens_.size() - start, static_cast<std::size_t>(kTokensAtOnce));
    run(cache, std::span<const Token>(tokens_).subspan(start, count), hidden_.data() + start * hidden);
  }
  std::size_t end = 0, wanted = 0;
  for (const Segment& segment : segments) {
    cache.append(segment.sequence, static_cast<std::int64_t>(segment.tokens.size()));
    end += segment.tokens.size();
    for (std::size_t i = end - static_cast<std::size_t>(segment.last); i < end; ++i, ++wanted) {
      if (i != wanted) std::copy_n(hidden_.data() + i * hidden, hidden, hidden_.data() + wanted * hidden);
    }
  }
  return static_cast<std::int64_t>(wanted);
}

void Embedding::row(std::int64_t id, std::int64_t hidden, float* out) const {
  if (bytes != nullptr) {
    for (std::int64_t i = 0; i < hidden; ++i) out[i] = static_cast<float>(bytes[id * hidden + i]) * scales[id];
    return;
  }
  for (std::int64_t i = 0; i < hidden; ++i) {
    const std::uint32_t bits = static_cast<std::uint32_t>(bfloat16[id * hidden + i]) << 16;
    std::memcpy(out + i, &bits, sizeof bits);
  }
}

void Decoder::run(Cache& cache, std::span<const Token> tokens, float* hidden) {
  const Dimensions& d = model_.dimensions;
  const auto rows = static_cast<std::int64_t>(tokens.size());
  team_.run([&](int member) {
    const FloatMode mode;
    Workspace& work = *work_[static_cast<std::size_t>(member)];
    for (std::int64_t t = 0; t < rows; ++t) {
      model_.embedding.row(tokens[static_cast<std::size_t>(t)].id, d.hidden, work.stream.data() + t * d.hidden);
    }
    for (std::int64_t index = 0; index < d.layers; ++index) {
      const Layer& layer = model_.layers[static_cast<std::size_t>(index)];
      attention(member, layer, index, cache, tokens);
      residual(work, layer.attention_norm, rows);
      feed_forward(member, layer, rows);
      residual(work, layer.mlp_norm, rows);
    }
    const Range mine = share(rows, member, team_.active());
    for (std::int64_t t = mine.first; t < mine.last; ++t) {
      kernels_.rms_norm(work.stream.data() + t * d.hidden, model_.norm, d.norm_eps, d.hidden, hidden + t * d.hidden);
    }
  });
}

// A branch's input, as bytes: the residual stream, normalised if the norm stands before the branch.
Activations Decoder::branch_input(Workspace& work, const Weights& weights, const float* norm, std::int64_t rows) const {
  const Dimensions& d = model_.dimensions;
  if (d.norm_after) return quantised(work, weights, work.stream.data(), rows);
  for (std::int64_t t = 0; t < rows; ++t) {
    const float* x = work.stream.data() + t * d.hidden;
    kernels_.rms_norm(x, norm, d.norm_eps, d.hidden, work.normalised.data() + t * d.hidden);
  }
  return quantised(work, weights, work.normalised.data(), rows);
}

// Every member quantises all rows itself: cheaper than one more barrier.
Activations Decoder::quantised(Workspace& work, const Weights& weights, const float* x, std::int64_t rows) const {
  const std::int64_t size = weights.in, group = weights.group_scales == nullptr ? size : kGroup;
  for (std::int64_t t = 0; t < rows; ++t) {
    const std::int64_t at = t * (size / group);
    kernels_.quantise(x + t * size, size, group, work.bytes.data() + t * size, work.scales.data() + at,
                      work.sums.data() + at);
  }
  return {work.bytes.data(), work.scales.data(), work.sums.data(), rows, size, group};
}

// A member computes its heads from the projection to what attention leaves, then its channels of the output.
void Decoder::attention(int member, const Layer& layer, std::int64_t index, const Cache& cache,
                        std::span<const Token> tokens) {
  const Dimensions& d = model_.dimensions;
  Workspace& work = *work_[static_cast<std::size_t>(member)];
  const auto rows = static_cast<std::int64_t>(tokens.size());
  const std::int64_t group = d.heads / d.kv_heads, dim = d.head_dim;
  const std::int64_t channels = (group + 2) * dim;  // of one K/V head
  const Range mine = share(d.kv_heads, member, team_.active());
  const std::int64_t stride = (mine.last - mine.first) * channels;
  const Activations x = branch_input(work, layer.qkv, layer.attention_norm, rows);
  kernels_.linear(layer.qkv, x, mine.first * channels / kChannels, mine.last * channels / kChannels,
                  work.projected.data(), stride);
  for (std::int64_t kv = mine.first; kv < mine.last; ++kv) {
    float* head = work.projected.data() + (kv - mine.first) * channels;
    for (std::int64_t t = 0; t < rows; ++t) {
      const Token& token = tokens[static_cast<std::size_t>(t)];
      float* query = head + t * stride;
      for (std::int64_t q = 0; q < group; ++q) {
        const std::int64_t offset = (kv * group + q) * dim;
        kernels_.norm_and_rotate(query + q * dim, layer.query_weight + offset, layer.query_bias + offset,
                                 model_.rotation, token.position, dim);
      }
      float* key = query + group * dim;
      kernels_.norm_and_rotate(key, layer.key_weight + kv * dim, layer.key_bias + kv * dim, model_.rotation,
                               token.position, dim);
      kernels_.append(cache.head(index, token.sequence, kv), key, key + dim, token.position, dim);
    }
    for (std::int64_t t = 0; t < rows; ++t) {
      const Token& token = tokens[static_cast<std::size_t>(t)];
      const HeadCache past = cache.head(index, token.sequence, kv);
      for (std::int64_t q = 0; q < group; ++q) {
        kernels_.attend(past, head + t * stride + q * dim, token.position, dim, work.scores.data(),
                        mixed_.data() + (t * d.heads + kv * group + q) * dim);
      }
    }
  }
  team_.barrier(member);
  const Activations y = quantised(work, layer.out, mixed_.data(), rows);
  const Range out = share(d.hidden / kChannels, member, team_.active());
  kernels_.linear(layer.out, y, out.first, out.last, delta_.data() + out.first * kChannels, d.hidden);
  team_.barrier(member);
}

void Decoder::feed_forward(int member, const Layer& layer, std::int64_t rows) {
  const Dimensions& d = model_.dimensions;
  Workspace& work = *work_[static_cast<std::size_t>(member)];
  const Range mine = share(d.intermediate / kChannels, member, team_.active());
  const std::int64_t size = (mine.last - mine.first) * kChannels;
  const Activations x = branch_input(work, layer.gate_up, layer.mlp_norm, rows);
  kernels_.linear(layer.gate_up, x, 2 * mine.first, 2 * mine.last, work.projected.data(), 2 * size);
  for (std::int64_t t = 0; t < rows; ++t) {
    kernels_.gate(work.projected.data() + t * 2 * size, size,
                  gated_.data() + t * d.intermediate + mine.first * kChannels);
  }
  team_.barrier(member);
  const Activations y = quantised(work, layer.down, gated_.data(), rows);
  const Range out = share(d.hidden / kChannels, member, team_.active());
  kernels_.linear(layer.down, y, out.first, out.last, delta_.data() + out.first * kChannels, d.hidden);
  team_.barrier(member);
}

// What a branch leaves joins the stream, normalised if the norm stands behind the branch.
void Decoder::residual(Workspace& work, const float* norm, std::int64_t rows) const {
  const Dimensions& d = model_.dimensions;
  for (std::int64_t t = 0; t < rows; ++t) {
    const float* delta = delta_.data() + t * d.hidden;
    if (d.norm_after) {
      kernels_.rms_norm(delta, norm, d.norm_eps, d.hidden, work.normalised.data());
      delta = work.normalised.data();
    }
    kernels_.add(work.stream.data() + t * d.hidden, delta, d.hidden);
  }
}

void Decoder::logits(const float* hidden, std::int64_t rows, std::int64_t low, std::int64_t high, float* out) {
  const Dimensions& d = model_.dimensions;
  const std::int64_t first = low / kChannels, last = (high + kChannels - 1) / kChannels;
  for (std::int64_t start = 0; start < rows; start += kTokensAtOnce) {
    const std::int64_t count = std::min(rows - start, kTokensAtOnce);
    team_.run([&](int member) {
      const FloatMode mode;
      Workspace& work = *work_[static_cast<std::size_t>(member)];
      const Activations x = quantised(work, model_.head, hidden + start * d.hidden, count);
      const Range mine = share(last - first, member, team_.active());
      // In pieces that fit the workspace; a piece's ends may lie outside [low, high).
      const auto room = static_cast<std::int64_t>(work.projected.size()) / (count * kChannels);
      for (std::int64_t block = first + mine.first; block < first + mine.last; block += room) {
        const std::int64_t end = std::min(block + room, first + mine.last);
        const std::int64_t stride = (end - block) * kChannels;
        kernels_.linear(model_.head, x, block, end, work.projected.data(), stride);
        const std::int64_t from = std::max(block * kChannels, low), to = std::min(end * kChannels, high);
        for (std::int64_t t = 0; t < count; ++t) {
          std::memcpy(out + (start + t) * (high - low) + from - low,
                      work.projected.data() + t * stride + from - block * kChannels,
                      static_cast<std::size_t>(to - from) * sizeof(float));
        }
      }
    });
  }
}

}  // namespace mgpt::cpu
