// How keys and values are stored in 8 bits: int8 with one scale for each head of a token, or e4m3 without a scale.
// Comparisons, integer operations, one multiplication and one division: the same bytes everywhere.
#pragma once

#include <cstdint>

#include "arithmetic/platform.h"

namespace mgpt {

// Magnitudes compare like their bits, NaN above all.
MGPT_HOST_DEVICE std::uint32_t magnitude_bits(float x) {
  return bits_of(x) & 0x7FFFFFFFu;
}

// The scale of numbers whose largest magnitude is given by its bits. Zeros are divided by something; NaN stays NaN, so
// that what is read back is no number either.
MGPT_HOST_DEVICE float int8_scale(std::uint32_t largest) {
  const float scale = float_of(largest) * (1.0f / 127.0f);
  return scale < 1e-30f ? 1e-30f : scale;
}

// x / scale to the nearest whole number, ties to even; 0 where that is no number.
MGPT_HOST_DEVICE std::int8_t to_int8(float x, float scale) {
  constexpr float kShift = 0x1.8p23f;  // numbers near it have no fraction
  const float rounded = (x / scale + kShift) - kShift;
  return magnitude_bits(rounded) > 0x7F800000u ? std::int8_t{0} : static_cast<std::int8_t>(rounded);
}

// e4m3 (the kind without infinities): to nearest, ties to even, beyond 448 clamped to it. NaN stays NaN.
MGPT_HOST_DEVICE std::uint8_t to_e4m3(float x) {
  constexpr std::uint32_t kLargest = 0x43E00000u;   // 448
  constexpr std::uint32_t kSmallest = 0x3C800000u;  // 2^-6, the smallest with three bits behind the point
  const std::uint32_t bits = magnitude_bits(x);
  std::uint32_t code = 0;
  if (bits > 0x7F800000u) {
    code = 0x7F;
  } else if (bits >= kLargest) {
    code = 0x7E;
  } else if (bits < kSmallest) {
    code = bits_of(float_of(bits) + 0x1p14f) - 0x46800000u;  // in units of 2^-9, the last place of 2^14
  } else {
    code = ((bits + 0x7FFFFu + (bits >> 20 & 1u)) >> 20) - (120u << 3);  // the exponents' biases differ by 120
  }
  return static_cast<std::uint8_t>(code | (bits_of(x) >> 24 & 0x80u));
}

}  // namespace mgpt
