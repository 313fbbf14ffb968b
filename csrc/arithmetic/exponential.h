// e^x to 2 units in the last place for x in [-87, 88]; below, 0; NaN stays NaN. n = round(x / ln 2), r = x - n ln 2
// with ln 2 in two parts, a polynomial of degree 6 on [-ln 2 / 2, ln 2 / 2] (coefficients as in Cephes' expf), times
// 2^n.
#pragma once

#include <cstdint>

#include "arithmetic/platform.h"

namespace mgpt {

constexpr float kLeastExponent = -87.0f, kMostExponent = 88.0f;
constexpr float kOneByLn2 = 1.44269504088896341f;
constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
constexpr float kExponential[] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                  4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};

// To the nearest whole number, ties to even, for |x| < 2^22.
MGPT_HOST_DEVICE float nearest(float x) {
  constexpr float kShift = 0x1.8p23f;
  return (x + kShift) - kShift;
}

MGPT_HOST_DEVICE float exponential(float x) {
  const float clamped = x < kLeastExponent ? kLeastExponent : (x > kMostExponent ? kMostExponent : x);
  const float n = nearest(clamped * kOneByLn2);
  float r = clamped - n * kLn2High;
  r = r - n * kLn2Low;
  float p = kExponential[0];
  for (int i = 1; i < 6; ++i) p = p * r + kExponential[i];
  p = p * (r * r) + r + 1.0f;
  if (x < kLeastExponent) return 0.0f;
  if (!(x == x)) return x;
  return p * float_of(static_cast<std::uint32_t>(static_cast<std::int32_t>(n) + 127) << 23);
}

}  // namespace mgpt
