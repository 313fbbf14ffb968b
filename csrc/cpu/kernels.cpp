// Compiled once per instruction set, with MGPT_SET naming it. No standard library beyond what is inlined here: a
// function template compiled for a newer CPU must not be the copy that the linker keeps for an older one.
#include "cpu/kernels.h"

#include "cpu/lanes.h"
#include "cpu/products.h"
#include "machine/instruction_sets.h"

namespace mgpt::cpu {
namespace {

constexpr float kLargestByte = 127.0f;
constexpr float kSmallestScale = 1e-30f;  // a row of zeros divides by this, not by zero
constexpr float kHeadEps = 1e-5f;

MGPT_INLINE float root(float x) {
  return __builtin_sqrtf(x);
}

// The largest magnitude, by integer comparison: NaN counts as larger than all.
MGPT_INLINE float largest_magnitude(const float* row, std::int64_t size) {
  Words found{};
  for (std::int64_t i = 0; i < size; i += kLanes) {
    const Words bits = as_words(magnitude(load(row + i)));
    found = (found & ~(bits > found)) | (bits & (bits > found));
  }
  const std::int32_t best = largest(found);
  float value;
  std::memcpy(&value, &best, sizeof value);
  return value;
}

// Bytes of a row divided by the scale, to nearest; returns their sum.
MGPT_INLINE std::int32_t to_bytes(const float* row, std::int64_t size, float scale, std::int8_t* values) {
  Words total{};
  for (std::int64_t i = 0; i < size; i += kLanes) {
    const Words bytes = to_words(rounded(load(row + i) / scale));
    total += bytes;
    store_bytes(values + i, bytes);
  }
  return sum(total);
}

MGPT_INLINE float scale_of(float largest) {
  const float scale = largest * (1.0f / kLargestByte);
  return scale < kSmallestScale ? kSmallestScale : scale;  // NaN stays NaN
}

void quantise(const float* row, std::int64_t size, std::int64_t group, std::int8_t* values, float* scales,
              std::int32_t* sums) {
  for (std::int64_t i = 0; i < size; i += group, ++scales, ++sums) {
    *scales = scale_of(largest_magnitude(row + i, group));
    *sums = to_bytes(row + i, group, *scales, values + i);
  }
}

// `blocks` neighbouring blocks of channels times `rows` rows, all sums in registers.
struct Tile8 {
  static constexpr int kMost = kMostSums;

  template <int rows, int blocks>
  MGPT_INLINE static void run(const Weights& weights, const Activations& x, std::int64_t block, std::int64_t row,
                              float* y, std::int64_t stride) {
    const std::int64_t bytes = weights.in * kChannels;  // of one block
    const std::uint8_t* w = weights.packed + block * bytes;
    const std::int8_t* a = x.values + row * x.in;
    Sums sums[rows][blocks] = {};
    for (std::int64_t i = 0; i < weights.in; i += kDepth) {
      Block part[blocks];
      for (int b = 0; b < blocks; ++b) {
        const std::uint8_t* at = w + b * bytes + i * kChannels;
        if constexpr (kAhead > 0) __builtin_prefetch(at + kAhead);
        part[b] = load_block(at);
      }
      for (int r = 0; r < rows; ++r) {
        std::int32_t four;
        std::memcpy(&four, a + r * x.in + i, sizeof four);
        for (int b = 0; b < blocks; ++b) accumulate(sums[r][b], part[b], four);
      }
    }
    for (int r = 0; r < rows; ++r) {
      const float scale = x.scales[row + r];
      const std::int32_t offset = kOffset * x.sums[row + r];
      for (int b = 0; b < blocks; ++b) {
        const Lanes exact = to_floats(words(sums[r][b]) - offset);
        const std::int64_t channel = b * kChannels;
        store(y + (row + r) * stride + channel, exact * load(weights.scales + block * kChannels + channel) * scale);
      }
    }
  }
};

// The same for weights of 4 bits: the sums of a group are exact, its scales make them floats, groups follow in order.
struct Tile4 {
  static constexpr int kMost = kMostGroupSums;

  template <int rows, int blocks>
  MGPT_INLINE static void run(const Weights& weights, const Activations& x, std::int64_t block, std::int64_t row,
                              float* y, std::int64_t stride) {
    const std::int64_t groups = weights.in / kGroup, bytes = weights.in * kChannels / 2;
    const std::uint8_t* w = weights.packed + block * bytes;
    const std::uint16_t* scales = weights.group_scales + block * groups * kChannels;
    const std::int8_t* a = x.values + row * x.in;
    Lanes totals[rows][blocks] = {};
    for (std::int64_t group = 0; group < groups; ++group) {
      GroupSums sums[rows][blocks] = {};
#pragma GCC unroll 4
      for (std::int64_t eight = 0; eight < kGroup / (2 * kDepth); ++eight) {
        const std::int64_t i = group * kGroup + eight * 2 * kDepth;
        Halves part[blocks];
        for (int b = 0; b < blocks; ++b) part[b] = load_halves(w + b * bytes + i * kChannels / 2);
        for (int r = 0; r < rows; ++r) {
          std::int32_t low, high;
          std::memcpy(&low, a + r * x.in + i, sizeof low);
          std::memcpy(&high, a + r * x.in + i + kDepth, sizeof high);
          for (int b = 0; b < blocks; ++b) accumulate(sums[r][b], part[b].low, low);
          for (int b = 0; b < blocks; ++b) accumulate(sums[r][b], part[b].high, high);
        }
      }
      for (int b = 0; b < blocks; ++b) {
        const Lanes scale = load_bfloat16(scales + (b * groups + group) * kChannels);
        for (int r = 0; r < rows; ++r) {
          const std::int64_t at = (row + r) * groups + group;
          const Lanes exact = to_floats(words(sums[r][b]) - 8 * x.sums[at]);
          totals[r][b] += exact * (scale * x.scales[at]);
        }
      }
    }
    for (int r = 0; r < rows; ++r) {
      for (int b = 0; b < blocks; ++b) store(y + (row + r) * stride + b * kChannels, totals[r][b]);
    }
  }
};

template <class Tile, int blocks>
MGPT_INLINE void columns(const Weights& weights, const Activations& x, std::int64_t block, float* y,
                         std::int64_t stride) {
  constexpr int most = Tile::kMost / blocks < 1 ? 1 : Tile::kMost / blocks;
  constexpr int rows = most > 4 ? 4 : most;  // eight rows spill registers
  std::int64_t row = 0;
  for (; row + rows <= x.rows; row += rows) Tile::template run<rows, blocks>(weights, x, block, row, y, stride);
  if constexpr (rows > 2) {
    for (; row + 2 <= x.rows; row += 2) Tile::template run<2, blocks>(weights, x, block, row, y, stride);
  }
  for (; row < x.rows; ++row) Tile::template run<1, blocks>(weights, x, block, row, y, stride);
}

// Few rows wait for memory, so many blocks are read side by side; many rows use each block often.
template <class Tile>
MGPT_INLINE void all_columns(const Weights& weights, const Activations& x, std::int64_t first, std::int64_t last,
                             float* y, std::int64_t stride) {
  constexpr int wide = Tile::kMost / 2 > 8 ? 8 : Tile::kMost / 2;  // of two rows
  std::int64_t block = first;
  const auto at = [&] { return y + (block - first) * kChannels; };
  if constexpr (wide > 3) {
    if (x.rows <= 2) {
      for (; block + wide <= last; block += wide) columns<Tile, wide>(weights, x, block, at(), stride);
    }
  }
  if constexpr (Tile::kMost >= 12) {
    for (; block + 3 <= last; block += 3) columns<Tile, 3>(weights, x, block, at(), stride);
  }
  if constexpr (Tile::kMost >= 4) {
    for (; block + 2 <= last; block += 2) columns<Tile, 2>(weights, x, block, at(), stride);
  }
  for (; block < last; ++block) columns<Tile, 1>(weights, x, block, at(), stride);
}

void linear(const Weights& weights, const Activations& x, std::int64_t first, std::int64_t last, float* y,
            std::int64_t stride) {
  if (weights.group_scales != nullptr) {
    all_columns<Tile4>(weights, x, first, last, y, stride);
  } else {
    all_columns<Tile8>(weights, x, first, last, y, stride);
  }
}

void rms_norm(const float* x, const float* weight, float eps, std::int64_t size, float* y) {
  Lanes squares{};
  for (std::int64_t i = 0; i < size; i += kLanes) {
    const Lanes part = load(x + i);
    squares += part * part;
  }
  const float scale = 1.0f / root(sum(squares) / static_cast<float>(size) + eps);
  for (std::int64_t i = 0; i < size; i += kLanes) store(y + i, load(x + i) * scale * load(weight + i));
}

void norm_and_rotate(float* head, const float* weight, const float* bias, const Rotation& rotation,
                     std::int64_t position, std::int64_t dim) {
  Lanes total{};
  for (std::int64_t i = 0; i < dim; i += kLanes) total += load(head + i);
  const float mean = sum(total) / static_cast<float>(dim);
  Lanes squares{};
  for (std::int64_t i = 0; i < dim; i += kLanes) {
    const Lanes part = load(head + i) - mean;
    squares += part * part;
  }
  const float scale = 1.0f / root(sum(squares) / static_cast<float>(dim) + kHeadEps);
  for (std::int64_t i = 0; i < dim; i += kLanes) {
    store(head + i, (load(head + i) - mean) * scale * load(weight + i) + load(bias + i));
  }
  const std::int64_t half = dim / 2;
  const float* cosines = rotation.cosines + position * half;
  const float* sines = rotation.sines + position * half;
  // A half of 8 dimensions has no full lanes: plain loops, which the compiler may cut as it likes.
  for (std::int64_t i = 0; i < half; ++i) {
    const float low = head[i], high = head[half + i];
    head[i] = low * cosines[i] - high * sines[i];
    head[half + i] = high * cosines[i] + low * sines[i];
  }
}

void append(const HeadCache& cache, const float* key, const float* value, std::int64_t position, std::int64_t dim) {
  std::int8_t bytes[kMostHeadDim];
  const float scale = scale_of(largest_magnitude(key, dim));
  to_bytes(key, dim, scale, bytes);
  cache.key_scales[position] = scale;
  std::uint8_t* column = cache.keys + position / kChannels * kChannels * dim + position % kChannels * kDepth;
  for (std::int64_t i = 0; i < dim; i += kDepth) {
    for (std::int64_t j = 0; j < kDepth; ++j) {
      column[i * kChannels + j] = static_cast<std::uint8_t>(static_cast<std::uint8_t>(bytes[i + j]) ^ 0x80u);
    }
  }
  cache.value_scales[position] = scale_of(largest_magnitude(value, dim));
  to_bytes(value, dim, cache.value_scales[position], cache.values + position * dim);
}

// `parts` times sixteen dimensions of the weighted sum of values, times `share`.
template <int parts>
MGPT_INLINE void mix(const std::int8_t* values, const float* weights, std::int64_t last, std::int64_t dim, float share,
                     float* y) {
  Lanes even[parts] = {}, odd[parts] = {};
  std::int64_t token = 0;
  for (; token < last; token += 2) {
    for (int part = 0; part < parts; ++part) {
      const std::int8_t* at = values + token * dim + part * kLanes;
      even[part] += to_floats(load_bytes(at)) * weights[token];
      odd[part] += to_floats(load_bytes(at + dim)) * weights[token + 1];
    }
  }
  if (token == last) {
    for (int part = 0; part < parts; ++part) {
      even[part] += to_floats(load_bytes(values + token * dim + part * kLanes)) * weights[token];
    }
  }
  for (int part = 0; part < parts; ++part) store(y + part * kLanes, (even[part] + odd[part]) * share);
}

void attend(const HeadCache& cache, const float* query, std::int64_t last, std::int64_t dim, float* scratch, float* y) {
  std::int8_t bytes[kMostHeadDim];
  float scale;
  std::int32_t query_sum;
  quantise(query, dim, dim, bytes, &scale, &query_sum);
  // Keys are packed like weights, one channel a token.
  const std::int64_t blocks = last / kChannels + 1;
  const Weights keys{cache.keys, cache.key_scales, nullptr, blocks * kChannels, dim};
  all_columns<Tile8>(keys, {bytes, &scale, &query_sum, 1, dim, dim}, 0, blocks, scratch, 0);
  const float temperature = 1.0f / root(static_cast<float>(dim));
  const Words lane = numbered();
  Lanes best = all(-__builtin_inff());
  for (std::int64_t token = 0; token <= last; token += kLanes) {
    const auto visible = static_cast<std::int32_t>(last - token < kLanes ? last - token : kLanes);
    const Lanes score = select(lane <= visible, load(scratch + token) * temperature, all(-__builtin_inff()));
    store(scratch + token, score);
    best = larger(score, best);
  }
  const float most = largest(best);
  Lanes total{};
  for (std::int64_t token = 0; token <= last; token += kLanes) {
    const Lanes weight = exponential(load(scratch + token) - most);
    total += weight;
    store(scratch + token, weight * load(cache.value_scales + token));
  }
  const float share = 1.0f / sum(total);
  std::int64_t i = 0;
  for (; i + 4 * kLanes <= dim; i += 4 * kLanes) mix<4>(cache.values + i, scratch, last, dim, share, y + i);
  for (; i < dim; i += kLanes) mix<1>(cache.values + i, scratch, last, dim, share, y + i);
}

void gate(const float* gates_and_ups, std::int64_t size, float* y) {
  for (std::int64_t i = 0; i < size; i += kLanes) {
    const Lanes gates = load(gates_and_ups + 2 * i);
    store(y + i, gates / (exponential(-gates) + 1.0f) * load(gates_and_ups + 2 * i + kLanes));
  }
}

void add(float* x, const float* y, std::int64_t size) {
  for (std::int64_t i = 0; i < size; i += kLanes) store(x + i, load(x + i) + load(y + i));
}

}  // namespace

#define MGPT_TEXT_(set) #set
#define MGPT_TEXT(set) MGPT_TEXT_(set)

extern const Kernels MGPT_OF_SET(kernels);
const Kernels MGPT_OF_SET(kernels){
    MGPT_TEXT(MGPT_SET), quantise, linear, rms_norm, norm_and_rotate, append, attend, gate, add};

}  // namespace mgpt::cpu
