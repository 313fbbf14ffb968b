// Products of weights and activations of 8 bits, exact in 32: a sum for each of 16 channels, four inputs at a time.
//
//   Sums       16 sums; GroupSums: of a group's products with weights of 4 bits
//   Block      the weights of 16 channels and four inputs, as the instruction wants them
//   Halves     the same of 4 bits and eight inputs
//   kOffset    what unsigned weights have too much: the sum of the activations times it is to be taken off
//   kAhead     how many bytes before their use weights are asked for, beyond what the CPU does by itself
//   kMostSums  how many stand in registers beside a block; kMostGroupSums: beside halves, with a total for each
//
// One definition for each instruction set, as in lanes.h.
#pragma once

#include "cpu/kernels.h"
#include "cpu/lanes.h"

#if defined(MGPT_DOT_VNNI512) || defined(MGPT_DOT_VNNI256) || defined(MGPT_DOT_AVX2)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace mgpt::cpu {
namespace {  // a copy of its own for each instruction set

#if defined(MGPT_DOT_VNNI512)

struct Sums {
  __m512i v;
};
struct Block {
  __m512i v;
};
struct Halves {
  Block low, high;
};
MGPT_INLINE Block load_block(const std::uint8_t* w) {
  return {_mm512_loadu_si512(w)};
}
MGPT_INLINE Halves load_halves(const std::uint8_t* w) {
  const __m512i both = _mm512_loadu_si512(w), mask = _mm512_set1_epi8(15);
  return {{_mm512_and_si512(both, mask)}, {_mm512_and_si512(_mm512_srli_epi16(both, 4), mask)}};
}
MGPT_INLINE void accumulate(Sums& acc, const Block& w, std::int32_t a) {
  acc.v = _mm512_dpbusd_epi32(acc.v, w.v, _mm512_set1_epi32(a));
}
MGPT_INLINE Words words(const Sums& acc) {
  return {{(WordPart)acc.v}};
}
using GroupSums = Sums;
constexpr int kMostSums = 24, kMostGroupSums = 8;

#elif defined(MGPT_DOT_VNNI256)

struct Sums {
  __m256i low, high;
};
struct Block {
  __m256i low, high;
};
struct Halves {
  Block low, high;
};
MGPT_INLINE Block load_block(const std::uint8_t* w) {
  const auto* from = reinterpret_cast<const __m256i*>(w);
  return {_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)};
}
MGPT_INLINE Halves load_halves(const std::uint8_t* w) {
  const Block both = load_block(w);
  const __m256i mask = _mm256_set1_epi8(15);
  return {{_mm256_and_si256(both.low, mask), _mm256_and_si256(both.high, mask)},
          {_mm256_and_si256(_mm256_srli_epi16(both.low, 4), mask),
           _mm256_and_si256(_mm256_srli_epi16(both.high, 4), mask)}};
}
MGPT_INLINE void accumulate(Sums& acc, const Block& w, std::int32_t a) {
  const __m256i four = _mm256_set1_epi32(a);
  acc.low = _mm256_dpbusd_avx_epi32(acc.low, w.low, four);
  acc.high = _mm256_dpbusd_avx_epi32(acc.high, w.high, four);
}
MGPT_INLINE Words words(const Sums& acc) {
  return {{(WordPart)acc.low, (WordPart)acc.high}};
}
using GroupSums = Sums;
constexpr int kMostSums = 4, kMostGroupSums = 2;

#elif defined(MGPT_DOT_AVX2)

// Unsigned times signed bytes is all there is: the weight's sign moves to the activation. Two products of at most
// 127 * 127 fit 16 bits, unlike two with weights up to 255.
struct Sums {
  __m256i v[2];
};
struct Block {
  __m256i w[2], magnitude[2];
};
MGPT_INLINE Block load_block(const std::uint8_t* w) {
  Block block;
  for (int i = 0; i < 2; ++i) {
    const __m256i offset = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w) + i);
    block.w[i] = _mm256_xor_si256(offset, _mm256_set1_epi8(-128));
    block.magnitude[i] = _mm256_abs_epi8(block.w[i]);
  }
  return block;
}
MGPT_INLINE void accumulate(Sums& acc, const Block& w, std::int32_t a) {
  const __m256i four = _mm256_set1_epi32(a), ones = _mm256_set1_epi16(1);
  for (int i = 0; i < 2; ++i) {
    const __m256i pairs = _mm256_maddubs_epi16(w.magnitude[i], _mm256_sign_epi8(four, w.w[i]));
    acc.v[i] = _mm256_add_epi32(acc.v[i], _mm256_madd_epi16(pairs, ones));
  }
}
MGPT_INLINE Words words(const Sums& acc) {
  return {{(WordPart)acc.v[0], (WordPart)acc.v[1]}};
}
#define MGPT_SIGNED_WEIGHTS 1
// Weights of 4 bits leave room for a whole group in 16 bits: 8 products of two pairs are at most 8 * 2 * 15 * 127.
static_assert(kGroup / kDepth * 2 * 15 * 127 < 1 << 15);
struct GroupSums {
  __m256i v[2];
};
struct HalfBlock {
  __m256i v[2];
};
struct Halves {
  HalfBlock low, high;
};
MGPT_INLINE Halves load_halves(const std::uint8_t* w) {
  const __m256i mask = _mm256_set1_epi8(15);
  Halves halves;
  for (int i = 0; i < 2; ++i) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w) + i);
    halves.low.v[i] = _mm256_and_si256(both, mask);
    halves.high.v[i] = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
  }
  return halves;
}
MGPT_INLINE void accumulate(GroupSums& acc, const HalfBlock& w, std::int32_t a) {
  const __m256i four = _mm256_set1_epi32(a);
  for (int i = 0; i < 2; ++i) acc.v[i] = _mm256_add_epi16(acc.v[i], _mm256_maddubs_epi16(w.v[i], four));
}
MGPT_INLINE Words words(const GroupSums& acc) {
  const __m256i ones = _mm256_set1_epi16(1);
  return {{(WordPart)_mm256_madd_epi16(acc.v[0], ones), (WordPart)_mm256_madd_epi16(acc.v[1], ones)}};
}
constexpr int kMostSums = 3, kMostGroupSums = 2;
#define MGPT_AHEAD 512  // a fifth more bytes a second on Zen 4; less with 1024 and more

#elif defined(__ARM_FEATURE_DOTPROD)

struct Sums {
  int32x4_t v[4];
};
// The offset is taken off again here, so the row's sum must not be: see kOffset.
struct Block {
  int8x16_t v[4];
};
struct Halves {
  Block low, high;
};
MGPT_INLINE Block load_block(const std::uint8_t* w) {
  Block block;
  for (int i = 0; i < 4; ++i) block.v[i] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(w + 16 * i), vdupq_n_u8(0x80)));
  return block;
}
MGPT_INLINE Halves load_halves(const std::uint8_t* w) {
  Halves halves;
  for (int i = 0; i < 4; ++i) {
    const uint8x16_t both = vld1q_u8(w + 16 * i);
    halves.low.v[i] = vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15)));
    halves.high.v[i] = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
  }
  return halves;
}
MGPT_INLINE void accumulate(Sums& acc, const Block& w, std::int32_t a) {
  const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(a));
  for (int i = 0; i < 4; ++i) acc.v[i] = vdotq_s32(acc.v[i], w.v[i], four);
}
MGPT_INLINE Words words(const Sums& acc) {
  Words all;
  std::memcpy(&all, &acc, sizeof all);
  return all;
}
using GroupSums = Sums;
constexpr int kMostSums = 4, kMostGroupSums = 2;
#define MGPT_SIGNED_WEIGHTS 1

#else

struct Sums {
  std::int32_t v[kChannels];
};
struct Block {
  std::uint8_t w[kChannels * kDepth];
};
struct Halves {
  Block low, high;
};
MGPT_INLINE Block load_block(const std::uint8_t* w) {
  Block block;
  std::memcpy(&block, w, sizeof block);
  return block;
}
MGPT_INLINE Halves load_halves(const std::uint8_t* w) {
  Halves halves;
  for (int i = 0; i < kChannels * kDepth; ++i) {
    halves.low.w[i] = w[i] & 15;
    halves.high.w[i] = w[i] >> 4;
  }
  return halves;
}
MGPT_INLINE void accumulate(Sums& acc, const Block& block, std::int32_t a) {
  std::int8_t four[4];
  std::memcpy(four, &a, sizeof four);
  for (int i = 0; i < kChannels; ++i) {
    const std::uint8_t* w = block.w + 4 * i;
    acc.v[i] += w[0] * four[0] + w[1] * four[1] + w[2] * four[2] + w[3] * four[3];
  }
}
MGPT_INLINE Words words(const Sums& acc) {
  Words all;
  std::memcpy(&all, &acc, sizeof all);
  return all;
}
using GroupSums = Sums;
constexpr int kMostSums = 4, kMostGroupSums = 1;

#endif

#if defined(MGPT_SIGNED_WEIGHTS)
constexpr std::int32_t kOffset = 0;
#else
constexpr std::int32_t kOffset = 128;
#endif

#if defined(MGPT_AHEAD)
constexpr std::int64_t kAhead = MGPT_AHEAD;
#else
constexpr std::int64_t kAhead = 0;
#endif

}  // namespace
}  // namespace mgpt::cpu
