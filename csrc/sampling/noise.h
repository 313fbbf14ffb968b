// Gumbel noise of a random word, in float32, with the same bits on every machine and finite for every word.
//
// u = (x + 0.5) 2^-32, gumbel = -log(-log1p(-u)). Only additions, multiplications, comparisons and integer operations,
// in the order written: compile with -ffp-contract=off (nvcc: -fmad=false). runtime/sampling/specification.py is the
// specification.
#pragma once

#include <cstdint>

#include "arithmetic/platform.h"

namespace mgpt {

// log(2^exponent * (1 + f)) for f in [sqrt(1/2) - 1, sqrt(2) - 1]. The polynomial is a relative minimax fit made for
// this file: log1p(f) = f - f^2/2 + f^3 P(f), truncation error 0.1 * 2^-24. ln 2 is split so that exponent * high is
// exact.
MGPT_HOST_DEVICE float log_of_parts(std::int32_t exponent, float f) {
  const float e = static_cast<float>(exponent);
  float p = -0x1.38b582p-4f;
  p = p * f + 0x1.055b6cp-3f;
  p = p * f + -0x1.0d8542p-3f;
  p = p * f + 0x1.22da1cp-3f;
  p = p * f + -0x1.547244p-3f;
  p = p * f + 0x1.99a008p-3f;
  p = p * f + -0x1.000226p-2f;
  p = p * f + 0x1.555554p-2f;
  const float square = f * f;
  float tail = square * f * p;
  tail = tail + e * 0x1.7f7d1cp-20f;
  tail = tail - 0.5f * square;
  return e * 0x1.62e4p-1f + (f + tail);
}

struct LogParts {
  std::int32_t exponent;
  float fraction;  // mantissa - 1, exact
};

// x = 2^exponent * (1 + fraction) with the mantissa in [sqrt(1/2), sqrt(2)); x is positive and normal.
MGPT_HOST_DEVICE LogParts log_parts(float x) {
  constexpr std::uint32_t kSqrtHalf = 0x3F3504F3u;
  const std::uint32_t shifted = bits_of(x) - kSqrtHalf;
  const float mantissa = float_of((shifted & 0x007FFFFFu) + kSqrtHalf);
  return {static_cast<std::int32_t>(shifted) >> 23, mantissa - 1.0f};
}

// (x + 0.5) 2^-32 rounded once: each half of x is exact, and so is their scaling.
MGPT_HOST_DEVICE float unit_interval(std::uint32_t x) {
  const float high = static_cast<float>(static_cast<std::int32_t>(x >> 16)) * 65536.0f;
  const float low = static_cast<float>(static_cast<std::int32_t>(x & 0xFFFFu)) + 0.5f;
  return (high + low) * 0x1p-32f;
}

MGPT_HOST_DEVICE float gumbel_of_word(std::uint32_t x) {
  const float u = unit_interval(x);
  const float v = unit_interval(~x);  // 1 - u, without cancellation
  const LogParts parts = log_parts(v);
  const float fraction = parts.exponent == 0 ? -u : parts.fraction;  // near v = 1, u has the digits that v lost
  const float exponential = -log_of_parts(parts.exponent, fraction);
  const LogParts outer = log_parts(exponential);
  return -log_of_parts(outer.exponent, outer.fraction);
}

}  // namespace mgpt
