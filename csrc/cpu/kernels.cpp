// Compiled once per instruction set, with MGPT_SET naming it. No standard library beyond what is inlined here: a
// function template compiled for a newer CPU must not be the copy that the linker keeps for an older one.
#include "cpu/kernels.h"

#include "arithmetic/order.h"
#include "cpu/lanes.h"
#include "cpu/products.h"
#include "machine/instruction_sets.h"

namespace mgpt::cpu {
namespace {

constexpr float kLargestByte = 127.0f;
constexpr float kSmallestScale = 1e-30f;  // a row of zeros divides by this, not by zero
constexpr float kHeadEps = 1e-5f;

MGPT_INLINE std::int64_t least(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}

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

// `rows` times `blocks` sums that stand in registers.
template <int rows, int blocks>
struct Totals {
  Lanes v[rows][blocks];

  MGPT_INLINE Totals operator+(const Totals& other) const {
    Totals sums;
    for (int r = 0; r < rows; ++r) {
      for (int b = 0; b < blocks; ++b) sums.v[r][b] = v[r][b] + other.v[r][b];
    }
    return sums;
  }
};

// The same for weights of 4 bits: the sums of a group are exact, its scales make them floats, chunks of groups
// (order.h).
struct Tile4 {
  static constexpr int kMost = kMostGroupSums;

  template <int rows, int blocks>
  MGPT_INLINE static void run(const Weights& weights, const Activations& x, std::int64_t block, std::int64_t row,
                              float* y, std::int64_t stride) {
    const std::int64_t groups = weights.in / kGroup;
    const Places at{weights.packed + block * weights.in * kChannels / 2,
                    weights.group_scales + block * groups * kChannels,
                    x.values + row * x.in,
                    x.scales + row * groups,
                    x.sums + row * groups,
                    groups};
    Totals<rows, blocks> totals = two_chunks<rows, blocks>(at, 0);
    if (groups > 2 * order::kChunk) {
      order::Pairs<Totals<rows, blocks>> pairs;
      pairs.add(totals);
      for (std::int64_t group = 2 * order::kChunk; group < groups; group += 2 * order::kChunk) {
        pairs.add(two_chunks<rows, blocks>(at, group));
      }
      totals = pairs.total();
    }
    for (int r = 0; r < rows; ++r) {
      for (int b = 0; b < blocks; ++b) store(y + (row + r) * stride + b * kChannels, totals.v[r][b]);
    }
  }

 private:
  // Where a tile's blocks and rows begin.
  struct Places {
    const std::uint8_t* weights;
    const std::uint16_t* weight_scales;
    const std::int8_t* values;
    const float* scales;
    const std::int32_t* sums;
    std::int64_t groups;

    MGPT_INLINE Places from(std::int64_t group) const {
      return {weights + group * kGroup * kChannels / 2,
              weight_scales + group * kChannels,
              values + group * kGroup,
              scales + group,
              sums + group,
              groups};
    }
  };

  // The sum of a chunk that begins with `group` and, if there is one, of the next.
  template <int rows, int blocks>
  MGPT_INLINE static Totals<rows, blocks> two_chunks(const Places& at, std::int64_t group) {
    const std::int64_t left = at.groups - group;
    if (left < order::kChunk) return chunk<rows, blocks>(at.from(group), left);
    const Totals<rows, blocks> totals = chunk<rows, blocks>(at.from(group), order::kChunk);
    const std::int64_t more = least(left - order::kChunk, order::kChunk);
    return more == 0 ? totals : totals + chunk<rows, blocks>(at.from(group + order::kChunk), more);
  }

  // So many groups in order.
  template <int rows, int blocks>
  MGPT_INLINE static Totals<rows, blocks> chunk(const Places& at, std::int64_t count) {
    const std::int64_t bytes = at.groups * kGroup * kChannels / 2;  // of a block
    Totals<rows, blocks> totals = {};
    for (std::int64_t group = 0; group < count; ++group) {
      GroupSums sums[rows][blocks] = {};
#pragma GCC unroll 4
      for (std::int64_t eight = 0; eight < kGroup / (2 * kDepth); ++eight) {
        const std::int64_t i = group * kGroup + eight * 2 * kDepth;
        Halves part[blocks];
        for (int b = 0; b < blocks; ++b) part[b] = load_halves(at.weights + b * bytes + i * kChannels / 2);
        for (int r = 0; r < rows; ++r) {
          const std::int8_t* const a = at.values + r * at.groups * kGroup + i;
          std::int32_t low, high;
          std::memcpy(&low, a, sizeof low);
          std::memcpy(&high, a + kDepth, sizeof high);
          for (int b = 0; b < blocks; ++b) accumulate(sums[r][b], part[b].low, low);
          for (int b = 0; b < blocks; ++b) accumulate(sums[r][b], part[b].high, high);
        }
      }
      for (int b = 0; b < blocks; ++b) {
        const Lanes scale = load_bfloat16(at.weight_scales + (b * at.groups + group) * kChannels);
        for (int r = 0; r < rows; ++r) {
          const Lanes exact = to_floats(words(sums[r][b]) - 8 * at.sums[r * at.groups + group]);
          totals.v[r][b] += exact * (scale * at.scales[r * at.groups + group]);
        }
      }
    }
    return totals;
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

// The sum of term(i) over the lanes that begin at i, in strands; `size` is a multiple of 16.
template <class Term>
MGPT_INLINE float in_strands(std::int64_t size, Term term) {
  static_assert(order::kStrands == 2 * kLanes);
  Lanes low{}, high{};
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= size; i += 2 * kLanes) {
    low += term(i);
    high += term(i + kLanes);
  }
  if (i < size) low += term(i);
  return sum(low + high);
}

void rms_norm(const float* x, const float* weight, float eps, std::int64_t size, float* y) {
  const float squares = in_strands(size, [&](std::int64_t i) {
    const Lanes part = load(x + i);
    return part * part;
  });
  const float scale = 1.0f / root(squares / static_cast<float>(size) + eps);
  for (std::int64_t i = 0; i < size; i += kLanes) store(y + i, load(x + i) * scale * load(weight + i));
}

void norm_and_rotate(float* head, const float* weight, const float* bias, const Rotation& rotation,
                     std::int64_t position, std::int64_t dim) {
  const float total = in_strands(dim, [&](std::int64_t i) { return load(head + i); });
  const float mean = total / static_cast<float>(dim);
  const float squares = in_strands(dim, [&](std::int64_t i) {
    const Lanes part = load(head + i) - mean;
    return part * part;
  });
  const float scale = 1.0f / root(squares / static_cast<float>(dim) + kHeadEps);
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

// One span of positions in attention: their scores become weights of the values, in place.
struct Span {
  float most;  // the largest score
  float sum;   // of exp(score - most)
};

// `tokens` positions from the first of a span, at most 64.
MGPT_INLINE Span weigh(float* scores, const float* value_scales, std::int64_t tokens, float temperature) {
  const Words lane = numbered();
  const auto count = static_cast<std::int32_t>(tokens);
  Lanes best = all(-__builtin_inff());
  for (std::int32_t i = 0; i < count; i += kLanes) {
    const Lanes score = select(lane < count - i, load(scores + i) * temperature, all(-__builtin_inff()));
    store(scores + i, score);
    best = larger(score, best);
  }
  const float most = largest(best);
  // In strands: positions i and i + 32 of the span, then halves.
  static_assert(order::kSpan == 2 * order::kStrands && order::kStrands == 2 * kLanes);
  Lanes sums[2] = {};
  for (std::int32_t i = 0; i < count; i += kLanes) {
    const Lanes weight = exponential(load(scores + i) - most);
    sums[i / kLanes % 2] += weight;
    store(scores + i, weight * load(value_scales + i));
  }
  return {most, sum(sums[0] + sums[1])};
}

// `parts` times sixteen dimensions of a head's values.
template <int parts>
struct Mixed {
  Lanes v[parts];

  MGPT_INLINE Mixed operator+(const Mixed& other) const {
    Mixed sums;
    for (int part = 0; part < parts; ++part) sums.v[part] = v[part] + other.v[part];
    return sums;
  }
};

// The weighted sum over one span's positions, times `factor`.
template <int parts>
MGPT_INLINE Mixed<parts> mix(const std::int8_t* values, const float* weights, std::int64_t tokens, std::int64_t dim,
                             float factor) {
  Mixed<parts> even = {}, odd = {};
  std::int64_t token = 0;
  for (; token + 2 <= tokens; token += 2) {
    for (int part = 0; part < parts; ++part) {
      const std::int8_t* at = values + token * dim + part * kLanes;
      even.v[part] += to_floats(load_bytes(at)) * weights[token];
      odd.v[part] += to_floats(load_bytes(at + dim)) * weights[token + 1];
    }
  }
  if (token < tokens) {
    for (int part = 0; part < parts; ++part) {
      even.v[part] += to_floats(load_bytes(values + token * dim + part * kLanes)) * weights[token];
    }
  }
  for (int part = 0; part < parts; ++part) even.v[part] = (even.v[part] + odd.v[part]) * factor;
  return even;
}

// The weighted sums over all spans, in pairs, times `share`.
template <int parts>
MGPT_INLINE void mix_all(const std::int8_t* values, const float* weights, const float* factors, std::int64_t tokens,
                         std::int64_t dim, float share, float* y) {
  order::Pairs<Mixed<parts>> spans;
  for (std::int64_t first = 0; first < tokens; first += order::kSpan) {
    const std::int64_t count = least(tokens - first, order::kSpan);
    spans.add(mix<parts>(values + first * dim, weights + first, count, dim, factors[first / order::kSpan]));
  }
  const Mixed<parts> total = spans.total();
  for (int part = 0; part < parts; ++part) store(y + part * kLanes, total.v[part] * share);
}

void attend(const HeadCache& cache, const float* query, std::int64_t last, std::int64_t dim, float* scratch, float* y) {
  std::int8_t bytes[kMostHeadDim];
  float scale;
  std::int32_t query_sum;
  quantise(query, dim, dim, bytes, &scale, &query_sum);
  // Keys are packed like weights, one channel a token.
  const std::int64_t tokens = last + 1, blocks = last / kChannels + 1;
  float* const weights = scratch;
  float* const factors = scratch + blocks * kChannels;  // of each span, filled up to whole lanes
  const Weights keys{cache.keys, cache.key_scales, nullptr, blocks * kChannels, dim};
  all_columns<Tile8>(keys, {bytes, &scale, &query_sum, 1, dim, dim}, 0, blocks, weights, 0);

  const float temperature = 1.0f / root(static_cast<float>(dim));
  const std::int64_t spans = (tokens + order::kSpan - 1) / order::kSpan;
  float* const sums = factors + (spans + kLanes - 1) / kLanes * kLanes;
  float most = -__builtin_inff();
  for (std::int64_t span = 0; span < spans; ++span) {
    const std::int64_t first = span * order::kSpan;
    const std::int64_t count = least(tokens - first, order::kSpan);
    const Span found = weigh(weights + first, cache.value_scales + first, count, temperature);
    factors[span] = found.most;
    sums[span] = found.sum;
    most = found.most > most ? found.most : most;
  }
  for (std::int64_t span = 0; span < spans; span += kLanes) {
    store(factors + span, exponential(load(factors + span) - most));
  }
  order::Pairs<float> total;
  for (std::int64_t span = 0; span < spans; ++span) total.add(sums[span] * factors[span]);
  const float share = 1.0f / total.total();
  std::int64_t i = 0;
  for (; i + 4 * kLanes <= dim; i += 4 * kLanes) {
    mix_all<4>(cache.values + i, weights, factors, tokens, dim, share, y + i);
  }
  for (; i < dim; i += kLanes) mix_all<1>(cache.values + i, weights, factors, tokens, dim, share, y + i);
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
