// What a decoder computes with, compiled once per instruction set; every set gives the same bits.
#pragma once

#include <cstdint>
#include <string_view>

namespace mgpt::cpu {

constexpr std::int64_t kChannels = 16;  // output channels of a block of packed weights
constexpr std::int64_t kDepth = 4;      // inputs that stand side by side in it
constexpr std::int64_t kGroup = 32;     // inputs that share a scale, where weights have 4 bits
constexpr std::int64_t kMostHeadDim = 1024;

// Weights [out, in]; `out` is a multiple of 16.
// Of 8 bits: bytes w + 128, packed [out / 16][in / 4][16][4]; one scale an output channel. `in` is a multiple of 4.
// Of 4 bits: halves of bytes w + 8, packed [out / 16][in / 8][16][4], the low halves inputs 0-3 of eight and the high
// halves 4-7; bfloat16 scales [out / 16][in / 32][16]. `in` is a multiple of 32.
struct Weights {
  const std::uint8_t* packed;
  const float* scales;                // null for 4 bits
  const std::uint16_t* group_scales;  // null for 8 bits
  std::int64_t out;
  std::int64_t in;
};

// Rows of activations as int8; `group` inputs share a scale: all of a row, or kGroup for weights of 4 bits.
struct Activations {
  std::int8_t* values;  // [rows, in]
  float* scales;        // [rows, in / group]
  std::int32_t* sums;   // [rows, in / group], of the bytes
  std::int64_t rows;
  std::int64_t in;
  std::int64_t group;
};

// One head's cached keys and values of one sequence: bytes with a scale a token. Keys are packed as weights are, a
// token in place of a channel: [token / 16][dim / 4][16][4]; values stand as [token][dim].
struct HeadCache {
  std::uint8_t* keys;
  float* key_scales;
  std::int8_t* values;
  float* value_scales;
};

struct Rotation {
  const float* cosines;  // [positions, dim / 2]
  const float* sines;
};

// Floats that attention over so many tokens works with: a score each, and for each span of 64 two numbers.
inline std::int64_t scratch_floats(std::int64_t tokens) {
  return tokens + tokens / 32 + 64;
}

struct Kernels {
  const char* name;

  // One row of floats -> int8, each group by its largest magnitude; NaN in, NaN scale out.
  void (*quantise)(const float* row, std::int64_t size, std::int64_t group, std::int8_t* values, float* scales,
                   std::int32_t* sums);

  // y[row, channel] for channels of blocks [first, last): exact integer sums of each group, scaled, added in order.
  // `y` points at the first of these channels, its rows are `stride` floats apart.
  void (*linear)(const Weights& weights, const Activations& x, std::int64_t first, std::int64_t last, float* y,
                 std::int64_t stride);

  // y = x / sqrt(mean(x^2) + eps) * weight; x and y may be the same.
  void (*rms_norm)(const float* x, const float* weight, float eps, std::int64_t size, float* y);

  // LayerNorm over one head's dimensions, then the rotary embedding of a position; in place.
  void (*norm_and_rotate)(float* head, const float* weight, const float* bias, const Rotation& rotation,
                          std::int64_t position, std::int64_t dim);

  // Writes one token's key and value.
  void (*append)(const HeadCache& cache, const float* key, const float* value, std::int64_t position, std::int64_t dim);

  // y = softmax(q . keys / sqrt(dim)) . values over positions 0..last; `scratch` holds scratch_floats(last + 1).
  void (*attend)(const HeadCache& cache, const float* query, std::int64_t last, std::int64_t dim, float* scratch,
                 float* y);

  // y[i] = silu(gate) * up of blocks that alternate: 16 gates, 16 ups.
  void (*gate)(const float* gates_and_ups, std::int64_t size, float* y);

  // x += y
  void (*add)(float* x, const float* y, std::int64_t size);
};

// Those of an instruction set, of the fastest if `set` is empty; null if this machine does not run it.
const Kernels* kernels_of(std::string_view set);

}  // namespace mgpt::cpu
