// Sixteen floats or words side by side, on every instruction set the same: as many vectors as that takes there.
//
// Only elementwise IEEE operations, and sums over lanes in one fixed order, so results have the same bits everywhere
// (with -ffp-contract=off). Everything is always_inline: this header is compiled once per instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "arithmetic/exponential.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define MGPT_INLINE inline __attribute__((always_inline))

namespace mgpt::cpu {
namespace {  // a copy of its own for each instruction set

constexpr int kLanes = 16;
#if defined(__AVX512F__)
constexpr int kWidth = 64;
#elif defined(__AVX2__)
constexpr int kWidth = 32;
#else
constexpr int kWidth = 16;
#endif
constexpr int kParts = 4 * kLanes / kWidth;

using FloatPart = float __attribute__((vector_size(kWidth)));
using WordPart = std::int32_t __attribute__((vector_size(kWidth)));

// GCC cuts a vector wider than the machine's into single elements wherever it compares, converts or extracts.
template <class Part>
struct Pack {
  Part v[kParts];
};
using Lanes = Pack<FloatPart>;
using Words = Pack<WordPart>;
static_assert(sizeof(Lanes) == 4 * kLanes);

template <class Part>
using Element = std::remove_reference_t<decltype(std::declval<Part&>()[0])>;

#define MGPT_EACH(op)                                                      \
  template <class Part>                                                    \
  MGPT_INLINE auto operator op(const Pack<Part>& a, const Pack<Part>& b) { \
    Pack<decltype(a.v[0] op b.v[0])> x;                                    \
    for (int i = 0; i < kParts; ++i) x.v[i] = a.v[i] op b.v[i];            \
    return x;                                                              \
  }                                                                        \
  template <class Part>                                                    \
  MGPT_INLINE auto operator op(const Pack<Part>& a, Element<Part> b) {     \
    Pack<decltype(a.v[0] op a.v[0])> x;                                    \
    for (int i = 0; i < kParts; ++i) x.v[i] = a.v[i] op(Part{} + b);       \
    return x;                                                              \
  }
MGPT_EACH(+)
MGPT_EACH(-)
MGPT_EACH(*)
MGPT_EACH(/)
MGPT_EACH(&)
MGPT_EACH(|)
MGPT_EACH(<<)
MGPT_EACH(<)
MGPT_EACH(<=)
MGPT_EACH(>)
#undef MGPT_EACH

template <class Part>
MGPT_INLINE Pack<Part>& operator+=(Pack<Part>& a, const Pack<Part>& b) {
  return a = a + b;
}

MGPT_INLINE Words operator~(const Words& a) {
  Words x;
  for (int i = 0; i < kParts; ++i) x.v[i] = ~a.v[i];
  return x;
}

MGPT_INLINE Lanes operator-(const Lanes& a) {
  Lanes x;
  for (int i = 0; i < kParts; ++i) x.v[i] = -a.v[i];
  return x;
}

// Part by part: a copy of the whole goes through memory in pieces of 16 bytes, and reading those as one stalls.
MGPT_INLINE Lanes load(const float* from) {
  Lanes x;
  for (int i = 0; i < kParts; ++i) std::memcpy(&x.v[i], from + i * kWidth / 4, kWidth);
  return x;
}

MGPT_INLINE void store(float* to, const Lanes& x) {
  for (int i = 0; i < kParts; ++i) std::memcpy(to + i * kWidth / 4, &x.v[i], kWidth);
}

MGPT_INLINE Lanes all(float x) {
  return Lanes{} + x;
}

// 0, 1, 2, ... 15
MGPT_INLINE Words numbered() {
  Words x{};
  for (int i = 0; i < kLanes; ++i) x.v[i / (kWidth / 4)][i % (kWidth / 4)] = i;
  return x;
}

// The same bits as the other type.
MGPT_INLINE Words as_words(const Lanes& x) {
  Words y;
  for (int i = 0; i < kParts; ++i) y.v[i] = (WordPart)x.v[i];
  return y;
}

MGPT_INLINE Lanes as_lanes(const Words& x) {
  Lanes y;
  for (int i = 0; i < kParts; ++i) y.v[i] = (FloatPart)x.v[i];
  return y;
}

// Sixteen int8, wider. GCC does this byte by byte unless it is told the instruction.
MGPT_INLINE Words load_bytes(const std::int8_t* from) {
#if defined(__AVX512F__)
  return {{(WordPart)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)))}};
#elif defined(__AVX2__)
  return {{(WordPart)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))),
           (WordPart)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from + 8)))}};
#elif defined(__ARM_NEON)
  const int8x16_t bytes = vld1q_s8(from);
  const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
  return {{(WordPart)vmovl_s16(vget_low_s16(low)), (WordPart)vmovl_s16(vget_high_s16(low)),
           (WordPart)vmovl_s16(vget_low_s16(high)), (WordPart)vmovl_s16(vget_high_s16(high))}};
#else
  Words x{};
  for (int i = 0; i < kLanes; ++i) x.v[i / 4][i % 4] = from[i];
  return x;
#endif
}

// The lowest byte of each.
MGPT_INLINE void store_bytes(std::int8_t* to, const Words& x) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)x.v[0]));
#elif defined(__AVX2__)
  const __m256i mask = _mm256_set1_epi32(255);
  // Packing works within halves of a vector: 0-3, 8-11, 4-7, 12-15.
  const __m256i pairs = _mm256_packus_epi32(_mm256_and_si256((__m256i)x.v[0], mask),  //
                                            _mm256_and_si256((__m256i)x.v[1], mask));
  const __m256i ordered = _mm256_permute4x64_epi64(pairs, 0xD8);
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
#elif defined(__ARM_NEON)
  const int16x8_t low = vcombine_s16(vmovn_s32((int32x4_t)x.v[0]), vmovn_s32((int32x4_t)x.v[1]));
  const int16x8_t high = vcombine_s16(vmovn_s32((int32x4_t)x.v[2]), vmovn_s32((int32x4_t)x.v[3]));
  vst1q_s8(to, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
#else
  for (int i = 0; i < kLanes; ++i) to[i] = static_cast<std::int8_t>(x.v[i / 4][i % 4]);
#endif
}

// Sixteen bfloat16.
MGPT_INLINE Lanes load_bfloat16(const std::uint16_t* from) {
#if defined(__AVX512F__)
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return {{(FloatPart)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)}};
#elif defined(__AVX2__)
  const auto* at = reinterpret_cast<const __m128i*>(from);
  return {{(FloatPart)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(at)), 16),
           (FloatPart)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(at + 1)), 16)}};
#elif defined(__ARM_NEON)
  const uint16x8_t low = vld1q_u16(from), high = vld1q_u16(from + 8);
  return {{(FloatPart)vshll_n_u16(vget_low_u16(low), 16), (FloatPart)vshll_n_u16(vget_high_u16(low), 16),
           (FloatPart)vshll_n_u16(vget_low_u16(high), 16), (FloatPart)vshll_n_u16(vget_high_u16(high), 16)}};
#else
  std::uint32_t words[kLanes];
  for (int i = 0; i < kLanes; ++i) words[i] = static_cast<std::uint32_t>(from[i]) << 16;
  Lanes x;
  std::memcpy(&x, words, sizeof x);
  return x;
#endif
}

MGPT_INLINE Lanes to_floats(const Words& x) {
  Lanes y;
  for (int i = 0; i < kParts; ++i) y.v[i] = __builtin_convertvector(x.v[i], FloatPart);
  return y;
}

MGPT_INLINE Words to_words(const Lanes& x) {
  Words y;
  for (int i = 0; i < kParts; ++i) y.v[i] = __builtin_convertvector(x.v[i], WordPart);
  return y;
}

MGPT_INLINE Lanes select(const Words& condition, const Lanes& yes, const Lanes& no) {
  return as_lanes((condition & as_words(yes)) | (~condition & as_words(no)));
}

MGPT_INLINE Lanes magnitude(const Lanes& x) {
  return as_lanes(as_words(x) & 0x7FFFFFFF);
}

MGPT_INLINE Lanes larger(const Lanes& a, const Lanes& b) {
  return select(a > b, a, b);
}

// To the nearest whole number, ties to even, for |x| < 2^22.
MGPT_INLINE Lanes rounded(const Lanes& x) {
  constexpr float kShift = 0x1.8p23f;
  return (x + kShift) - kShift;
}

// One of all lanes, in halves: lane i takes lane i + 8, then i + 4, then i + 2, then i + 1.
template <class Part, class Join>
MGPT_INLINE Element<Part> joined(const Pack<Part>& x, Join join) {
  Part parts[kParts];
  for (int i = 0; i < kParts; ++i) parts[i] = x.v[i];
#pragma GCC unroll 4
  for (int half = kParts / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) parts[i] = join(parts[i], parts[i + half]);
  }
  WordPart order{};
  for (int i = 0; i < kWidth / 4; ++i) order[i] = i;
#pragma GCC unroll 4
  for (int half = kWidth / 8; half > 0; half /= 2) parts[0] = join(parts[0], __builtin_shuffle(parts[0], order ^ half));
  return parts[0][0];
}

MGPT_INLINE float sum(const Lanes& x) {
  return joined(x, [](FloatPart a, FloatPart b) { return a + b; });
}

MGPT_INLINE std::int32_t sum(const Words& x) {
  return joined(x, [](WordPart a, WordPart b) { return a + b; });
}

MGPT_INLINE std::int32_t largest(const Words& x) {
  return joined(x, [](WordPart a, WordPart b) { return (a & (a > b)) | (b & ~(a > b)); });
}

MGPT_INLINE float largest(const Lanes& x) {
  return joined(x, [](FloatPart a, FloatPart b) {
    const WordPart greater = a > b;
    return (FloatPart)((greater & (WordPart)a) | (~greater & (WordPart)b));
  });
}

// arithmetic/exponential.h, sixteen at a time.
MGPT_INLINE Lanes exponential(const Lanes& x) {
  const Lanes clamped =
      select(x < kLeastExponent, all(kLeastExponent), select(x > kMostExponent, all(kMostExponent), x));
  const Lanes n = rounded(clamped * kOneByLn2);
  Lanes r = clamped - n * kLn2High;
  r = r - n * kLn2Low;
  Lanes p = all(kExponential[0]);
#pragma GCC unroll 5
  for (int i = 1; i < 6; ++i) p = p * r + kExponential[i];
  p = p * (r * r) + r + 1.0f;
  const Words power = (to_words(n) + 127) << 23;
  return select(x < kLeastExponent, Lanes{}, p * as_lanes(power));
}

}  // namespace
}  // namespace mgpt::cpu
