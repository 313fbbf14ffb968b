// The order of the native decoder's float sums: one that the lanes of a CPU and the threads of a GPU can follow alike.
// runtime/engines/specification.py says in NumPy what is computed; sums of integers are exact, whatever their order.
//
//   strands   The terms of a norm go to 32 strands by their index modulo 32; each strand is added in order, then strand
//             i takes strand i + 16, then i + 8, and so on. So do the weights of the 64 positions of a span.
//   spans     Attention looks at spans of 64 absolute positions, whatever the pass: each has a largest score, a sum of
//             weights and a weighted sum of values of its own (even positions in order, odd ones in order, then both).
//             Each span times exp(its largest - the largest of all), then all of them in pairs.
//   chunks    The groups of a channel with weights of 4 bits are added in order within chunks of 16 groups, then the
//             chunks in pairs.
//   pairs     The first and the second, the third and the fourth, ...; then pairs of these sums; a last one without a
//             partner goes up as it is.
//
// Terms that are not there (beyond a size, behind the last position) are left out; adding +0 for them changes nothing.
#pragma once

#include <cstdint>

#include "arithmetic/platform.h"

namespace mgpt::order {

constexpr std::int64_t kStrands = 32;
constexpr std::int64_t kSpan = 64;
constexpr std::int64_t kChunk = 16;

// Adds values in pairs as they come; what waits for its partner stands at the level of its pair.
template <class Value, int kLevels = 32>
class Pairs {
 public:
  MGPT_HOST_DEVICE void add(Value value) {
    int level = 0;
    for (std::uint32_t before = count_++; (before & 1u) != 0; before >>= 1) value = waiting_[level++] + value;
    waiting_[level] = value;
  }

  // Of at least one value.
  MGPT_HOST_DEVICE Value total() const {
    int level = 0;
    while ((count_ >> level & 1u) == 0) ++level;
    Value sum = waiting_[level];
    for (++level; count_ >> level != 0; ++level) {
      if ((count_ >> level & 1u) != 0) sum = waiting_[level] + sum;
    }
    return sum;
  }

 private:
  std::uint32_t count_ = 0;
  Value waiting_[kLevels];
};

// The sum of term(0), ..., term(count - 1) in strands by a team, on each of its lanes. A team has kLanes lanes, a power
// of two up to 32; lane() is this one's number, across(x, mask) the x of the lane whose number differs in `mask`.
template <class Team, class Term>
MGPT_TEAM float strands(const Team& team, std::int64_t count, const Term& term) {
  constexpr int kEach = static_cast<int>(kStrands) / Team::kLanes;
  float sums[kEach] = {};
  for (std::int64_t start = 0; start < count; start += kStrands) {
    for (int i = 0; i < kEach; ++i) {
      const std::int64_t index = start + i * Team::kLanes + team.lane();
      if (index < count) sums[i] += term(index);
    }
  }
  for (int half = kEach / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  for (int half = Team::kLanes / 2; half > 0; half /= 2) sums[0] += team.across(sums[0], half);
  return sums[0];
}

}  // namespace mgpt::order
