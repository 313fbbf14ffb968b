// One draw by a team of threads: what sampler.cpp computes, with the same bits. runtime/sampling/specification.py is
// the specification.
//
// A team is a CUDA block (csrc/cuda/team.cuh), or CPU threads in the tests. It has
//   kThreads, kLanes           its size, and that of a warp; kThreads / kLanes is at most kLanes
//   rank(), lane()             of this thread in the team and in its warp
//   sync(), sync_lanes()       barriers of the team and of the warp, for shared memory too
//   any(x)                     whether x holds for any thread of the team; a barrier as well
//   increment(counter)         adds 1 in shared memory, all at once
//   sum_before(x), largest(x), places(x)   of the warp's lanes: sum over lower lanes; maximum, for all lanes; how many
//                              lower lanes, and how many in all, have x
#pragma once

#include <cstdint>

#include "arithmetic/platform.h"
#include "sampling/draw.h"
#include "sampling/radix_select.h"

namespace mgpt {

struct Places {
  std::uint32_t before;
  std::uint32_t total;
};

// Keys that a thread reads at once, so that it waits for memory once.
constexpr std::uint32_t kBatch = 4;

struct KeyBatch {
  GuidedKey keys[kBatch];
};

// What the threads of a team share.
template <class Team>
struct DrawScratch {
  static constexpr std::uint32_t kWaiting = (kBatch + 1) * Team::kLanes;  // most of a warp: a batch, and a rest
  std::uint32_t histogram[kDigits];
  std::uint32_t waiting[kWaiting * Team::kThreads / Team::kLanes];  // ids, for each warp
  std::uint64_t best[Team::kThreads / Team::kLanes];
  Selection selection;
};

// The guided keys of a request. They are computed again at every read: the logits stay in the cache nearest to the
// team, and neither a workspace nor a limit on the ids is needed.
class GuidedKeys {
 public:
  MGPT_HOST_DEVICE explicit GuidedKeys(const SampleRequest& request)
      : cond_(request.cond),
        uncond_(request.uncond == nullptr ? request.cond : request.uncond),
        count_(request.count),
        guidance_(request.uncond == nullptr ? 1.0f : request.guidance) {}

  MGPT_HOST_DEVICE GuidedKey operator[](std::uint32_t i) const {
    return guided_key(cond_[i], uncond_[i], Formula{guidance_});
  }

  // Those at first, first + stride and so on; behind the end, ids that are excluded.
  MGPT_HOST_DEVICE KeyBatch read(std::uint32_t first, std::uint32_t stride) const {
    KeyBatch batch;
    for (std::uint32_t j = 0; j < kBatch; ++j) {
      const std::uint32_t i = first + j * stride;
      batch.keys[j] = i < count_ ? (*this)[i] : GuidedKey{0, 0};
    }
    return batch;
  }

 private:
  struct Formula {
    float guidance;
    MGPT_HOST_DEVICE float operator()(float c, float u) const {
      const float blend = u + guidance * (c - u);
      return guidance == 1.0f ? c : guidance == 0.0f ? u : blend;
    }
  };
  const float* cond_;
  const float* uncond_;
  std::uint32_t count_;
  float guidance_;
};

template <class Team>
MGPT_TEAM SampleStatus select(const Team& team, const SampleRequest& request, const GuidedKeys& keys,
                              DrawScratch<Team>& scratch, std::uint32_t* threshold) {
  // Temperature 0 needs the largest key alone.
  Selection search = largest_keys(request.temperature == 0.0f ? 1 : request.top_k);
  while (search.done == 0) {
    for (std::uint32_t i = team.rank(); i < kDigits; i += Team::kThreads) scratch.histogram[i] = 0;
    team.sync();
    std::uint32_t nan = 0;
    for (std::uint32_t first = team.rank(); first < request.count; first += kBatch * Team::kThreads) {
      for (const GuidedKey& guided : keys.read(first, Team::kThreads).keys) {
        nan |= guided.nan;
        if (guided.key != 0 && begins_alike(guided.key, search)) {
          team.increment(&scratch.histogram[digit_of(guided.key, search)]);
        }
      }
    }
    if (team.any(nan != 0)) return SampleStatus::not_a_number;
    if (team.rank() < Team::kLanes) narrow(team, scratch.histogram, search, &scratch.selection);
    team.sync();
    search = scratch.selection;
  }
  *threshold = search.threshold == 0 ? 1 : search.threshold;  // not the excluded ids
  return search.rank == 0 ? SampleStatus::nothing_left : SampleStatus::token;
}

// Score and id in one number: the largest is the best score and, of equals, the lowest id.
MGPT_HOST_DEVICE std::uint64_t candidate(const SampleRequest& request, const GuidedKeys& keys, std::uint32_t i) {
  const std::uint32_t id = request.low + i;
  const std::uint32_t key = keys[i].key;
  const std::uint32_t score =
      request.temperature == 0.0f ? key : score_key(key, id, request.temperature, request.seed, request.position);
  return static_cast<std::uint64_t>(score) << 32 | static_cast<std::uint32_t>(~id);
}

// The best of this warp's share. Ids that are kept wait until there is one for every lane: noise costs far more than
// finding them, and lanes without an id would compute along.
template <class Team>
MGPT_TEAM std::uint64_t best_of_warp(const Team& team, const SampleRequest& request, const GuidedKeys& keys,
                                     std::uint32_t threshold, std::uint32_t* waiting) {
  std::uint64_t best = 0;
  std::uint32_t count = 0;
  const std::uint32_t warp = team.rank() - team.lane();
  for (std::uint32_t first = 0; first + warp < request.count; first += kBatch * Team::kThreads) {
    const KeyBatch batch = keys.read(first + team.rank(), Team::kThreads);
    for (std::uint32_t j = 0; j < kBatch; ++j) {
      const bool kept = batch.keys[j].key >= threshold;
      const Places places = team.places(kept);
      if (kept) waiting[count + places.before] = first + j * Team::kThreads + team.rank();
      count += places.total;
    }
    team.sync_lanes();
    while (count >= Team::kLanes) {
      count -= Team::kLanes;
      const std::uint64_t scored = candidate(request, keys, waiting[count + team.lane()]);
      best = scored > best ? scored : best;
    }
    team.sync_lanes();  // what was read may be overwritten
  }
  if (team.lane() < count) {
    const std::uint64_t scored = candidate(request, keys, waiting[team.lane()]);
    best = scored > best ? scored : best;
  }
  return team.largest(best);
}

// All threads of the team call it, all get the status, and the first warp gets the token. A barrier has to stand before
// the scratch is used again.
template <class Team>
MGPT_TEAM SampleResult draw(const Team& team, const SampleRequest& request, DrawScratch<Team>& scratch) {
  const GuidedKeys keys(request);
  std::uint32_t threshold = 0;
  const SampleStatus status = select(team, request, keys, scratch, &threshold);
  if (status != SampleStatus::token) return {status, 0};
  constexpr std::uint32_t kWarps = Team::kThreads / Team::kLanes;
  const std::uint32_t warp = team.rank() / Team::kLanes;
  std::uint64_t best =
      best_of_warp(team, request, keys, threshold, scratch.waiting + warp * DrawScratch<Team>::kWaiting);
  if (team.lane() == 0) scratch.best[warp] = best;
  team.sync();
  if (warp == 0) best = team.largest(team.lane() < kWarps ? scratch.best[team.lane()] : 0);
  return {SampleStatus::token, ~static_cast<std::uint32_t>(best)};
}

}  // namespace mgpt
