// Sixteen floats side by side, on every instruction set the same: the compiler cuts them into what the machine has.
//
// Only elementwise IEEE operations, and sums over lanes in one fixed order, so results have the same bits everywhere
// (with -ffp-contract=off). Everything is always_inline: this header is compiled once per instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define MGPT_INLINE inline __attribute__((always_inline))

namespace mgpt::cpu {
namespace {  // a copy of its own for each instruction set

constexpr int kLanes = 16;

using Lanes = float __attribute__((vector_size(64)));
using Words = std::int32_t __attribute__((vector_size(64)));
using Bytes = std::int8_t __attribute__((vector_size(16)));

MGPT_INLINE Lanes load(const float* from) {
  Lanes x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

MGPT_INLINE void store(float* to, Lanes x) {
  std::memcpy(to, &x, sizeof x);
}

MGPT_INLINE Lanes all(float x) {
  return Lanes{} + x;
}

// Sixteen int8, wider. GCC does this byte by byte unless it is told the instruction.
MGPT_INLINE Words load_bytes(const std::int8_t* from) {
#if defined(__AVX512F__)
  return (Words)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
  const __m256i halves[2] = {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))),
                             _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8)))};
  Words x;
  std::memcpy(&x, halves, sizeof x);
  return x;
#else
  Bytes x;
  std::memcpy(&x, from, sizeof x);
  return __builtin_convertvector(x, Words);
#endif
}

// Sixteen bfloat16.
MGPT_INLINE Lanes load_brains(const std::uint16_t* from) {
#if defined(__AVX512F__)
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return (Lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
#elif defined(__AVX2__)
  const auto* at = reinterpret_cast<const __m128i*>(from);
  const __m256i words[2] = {_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(at)), 16),
                            _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(at + 1)), 16)};
  Lanes x;
  std::memcpy(&x, words, sizeof x);
  return x;
#else
  Words x;
  for (int i = 0; i < kLanes; ++i) x[i] = static_cast<std::int32_t>(static_cast<std::uint32_t>(from[i]) << 16);
  return (Lanes)x;
#endif
}

MGPT_INLINE Lanes to_floats(Words x) {
  return __builtin_convertvector(x, Lanes);
}

MGPT_INLINE Lanes select(Words condition, Lanes yes, Lanes no) {
  return (Lanes)((condition & (Words)yes) | (~condition & (Words)no));
}

MGPT_INLINE Lanes magnitude(Lanes x) {
  return (Lanes)((Words)x & 0x7FFFFFFF);
}

MGPT_INLINE Lanes larger(Lanes a, Lanes b) {
  return select(a > b, a, b);
}

// To the nearest whole number, ties to even, for |x| < 2^22.
MGPT_INLINE Lanes rounded(Lanes x) {
  constexpr float kShift = 0x1.8p23f;
  return (x + kShift) - kShift;
}

// In pairs, always the same: (0+8, 1+9, ...), then halves of that.
MGPT_INLINE float sum(Lanes x) {
  float v[kLanes];
  store(v, x);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) v[i] += v[i + width];
  }
  return v[0];
}

// Of whole numbers, in halves: whatever the order, the result is the same.
template <class Join>
MGPT_INLINE std::int32_t joined(Words x, Join join) {
  x = join(x, __builtin_shuffle(x, Words{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7}));
  x = join(x, __builtin_shuffle(x, Words{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11}));
  x = join(x, __builtin_shuffle(x, Words{2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13}));
  x = join(x, __builtin_shuffle(x, Words{1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14}));
  return x[0];
}

MGPT_INLINE std::int32_t sum(Words x) {
  return joined(x, [](Words a, Words b) { return a + b; });
}

MGPT_INLINE std::int32_t largest(Words x) {
  return joined(x, [](Words a, Words b) { return (a & (a > b)) | (b & ~(a > b)); });
}

MGPT_INLINE float largest(Lanes x) {
  float v[kLanes];
  store(v, x);
  float found = v[0];
  for (int i = 1; i < kLanes; ++i) found = v[i] > found ? v[i] : found;
  return found;
}

// e^x to 2 units in the last place for x in [-87, 88]; below, 0; NaN stays NaN. Degree-6 Taylor-like minimax polynomial
// on [-ln 2 / 2, ln 2 / 2] (coefficients as in Cephes' expf), ln 2 in two parts.
MGPT_INLINE Lanes exponential(Lanes x) {
  const Lanes clamped = select(x < -87.0f, all(-87.0f), select(x > 88.0f, all(88.0f), x));
  const Lanes n = rounded(clamped * 1.44269504088896341f);
  Lanes r = clamped - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  Lanes p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Words power = (__builtin_convertvector(n, Words) + 127) << 23;
  return select(x < -87.0f, Lanes{}, p * (Lanes)power);
}

}  // namespace
}  // namespace mgpt::cpu
