// The k-th largest of many keys, one digit of eight bits after another from the highest: at most four reads of the
// keys, and no sort. A team of threads counts the digits, the lanes of its first warp narrow the search.
#pragma once

#include <cstdint>

#include "arithmetic/platform.h"

namespace mgpt {

constexpr std::uint32_t kDigits = 256;

// Where a search stands. When it is done, the keys from `threshold` on are kept.
struct Selection {
  std::uint32_t threshold;  // digits found so far, zeros behind them
  std::uint32_t rank;       // how many of the keys that begin with them are kept
  std::uint32_t shift;      // of the digit that is counted next
  std::uint32_t done;
};

MGPT_HOST_DEVICE Selection largest_keys(std::uint32_t k) {
  return {0, k, 24, 0};
}

MGPT_HOST_DEVICE bool begins_alike(std::uint32_t key, const Selection& search) {
  return static_cast<std::uint64_t>(key ^ search.threshold) >> (search.shift + 8) == 0;
}

MGPT_HOST_DEVICE std::uint32_t digit_of(std::uint32_t key, const Selection& search) {
  return (key >> search.shift) % kDigits;
}

// One step: `histogram` counts the next digit of the keys that begin with the digits found. Every lane of a warp calls
// it; the lane that finds the digit writes `next`. Fewer keys than asked for are all kept, and then `rank` is their
// number: 0 if there are none.
template <class Team>
MGPT_TEAM void narrow(const Team& team, const std::uint32_t* histogram, const Selection& search, Selection* next) {
  constexpr std::uint32_t kOwn = kDigits / Team::kLanes;
  std::uint32_t digit = kDigits - 1 - team.lane() * kOwn;  // the first lane has the largest digits
  std::uint32_t own = 0;
  for (std::uint32_t i = 0; i < kOwn; ++i) own += histogram[digit - i];
  std::uint32_t above = team.sum_before(own);
  if (above < search.rank && search.rank <= above + own) {
    while (above + histogram[digit] < search.rank) above += histogram[digit--];
    const std::uint32_t rank = search.rank - above;
    const bool done = search.shift == 0 || histogram[digit] == rank;
    *next = {search.threshold | digit << search.shift, rank, search.shift - 8, done ? 1u : 0u};
  } else if (team.lane() == Team::kLanes - 1 && above + own < search.rank) {
    *next = {1, above + own, 0, 1};
  }
}

}  // namespace mgpt
