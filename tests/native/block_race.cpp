// A team of CPU threads, in warps of four, draws what the sampler draws. Built with ThreadSanitizer, which sees a
// missing barrier; a GPU is not needed for that.
#include <array>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "block_draw.h"
#include "sampler.h"

namespace {

constexpr std::uint32_t kThreadsInAll = 12;
constexpr std::uint32_t kLanesInAll = 4;

// Where the threads meet, and what they hand each other: the tests' __syncthreads and __shfl_sync.
struct Meeting {
  std::barrier<> team{kThreadsInAll};
  std::array<std::barrier<>, 3> warps{std::barrier<>(kLanesInAll), std::barrier<>(kLanesInAll),
                                      std::barrier<>(kLanesInAll)};
  std::array<std::uint64_t, kThreadsInAll> values{};
};

class Threads {
 public:
  static constexpr std::uint32_t kThreads = kThreadsInAll;
  static constexpr std::uint32_t kLanes = kLanesInAll;

  Threads(Meeting& meeting, std::uint32_t rank) : meeting_(meeting), rank_(rank) {}
  std::uint32_t rank() const { return rank_; }
  std::uint32_t lane() const { return rank_ % kLanes; }
  void sync() const { meeting_.team.arrive_and_wait(); }
  void sync_lanes() const { meeting_.warps[rank_ / kLanes].arrive_and_wait(); }
  void increment(std::uint32_t* counter) const { __atomic_fetch_add(counter, 1u, __ATOMIC_RELAXED); }

  bool any(bool x) const {
    meeting_.values[rank_] = x ? 1 : 0;
    sync();
    bool found = false;
    for (const std::uint64_t value : meeting_.values) found |= value != 0;
    sync();
    return found;
  }
  std::uint32_t sum_before(std::uint32_t x) const {
    const auto values = exchange(x);
    std::uint32_t sum = 0;
    for (std::uint32_t i = 0; i < lane(); ++i) sum += static_cast<std::uint32_t>(values[i]);
    return sum;
  }
  std::uint64_t largest(std::uint64_t x) const {
    std::uint64_t found = 0;
    for (const std::uint64_t value : exchange(x)) found = value > found ? value : found;
    return found;
  }
  mgpt::Places places(bool x) const {
    mgpt::Places places{sum_before(x ? 1 : 0), 0};
    for (const std::uint64_t value : exchange(x ? 1 : 0)) places.total += value != 0 ? 1u : 0u;
    return places;
  }

 private:
  std::array<std::uint64_t, kLanes> exchange(std::uint64_t x) const {
    meeting_.values[rank_] = x;
    sync_lanes();
    std::array<std::uint64_t, kLanes> values{};
    for (std::uint32_t i = 0; i < kLanes; ++i) values[i] = meeting_.values[rank_ - lane() + i];
    sync_lanes();
    return values;
  }
  Meeting& meeting_;
  std::uint32_t rank_;
};

// A request, and the logits it points at.
struct Case {
  std::vector<float> cond, uncond;
  mgpt::SampleRequest request;
};

Case random_case(std::mt19937& random) {
  const auto below = [&](std::uint32_t end) { return static_cast<std::uint32_t>(random() % end); };
  Case made;
  std::normal_distribution<float> normal(0.0f, 4.0f);
  const bool ties = below(2) == 0;
  const std::uint32_t size = 1 + below(below(4) == 0 ? 700 : 60);
  for (std::vector<float>* row : {&made.cond, &made.uncond}) {
    for (std::uint32_t i = 0; i < size; ++i) {
      const float x = normal(random);
      row->push_back(below(20) == 0 ? -std::numeric_limits<float>::infinity() : ties ? std::round(x / 4.0f) : x);
    }
  }
  if (below(20) == 0) made.cond[below(size)] = std::numeric_limits<float>::quiet_NaN();
  constexpr std::array<float, 3> kGuidances{0.0f, 1.0f, 4.0f};
  constexpr std::array<std::uint32_t, 4> kTops{1, 5, 50, 2000};
  made.request = {made.cond.data(), below(3) == 0 ? nullptr : made.uncond.data(),
                  below(70000),     size,
                  kTops[below(4)],  kGuidances[below(3)],
                  below(4) * 0.5f,  random(),
                  below(5000)};
  return made;
}

}  // namespace

int main() {
  constexpr int kCases = 60;
  std::mt19937 random(5);
  std::vector<Case> cases;
  for (int i = 0; i < kCases; ++i) cases.push_back(random_case(random));
  std::vector<mgpt::SampleResult> results(cases.size());
  Meeting meeting;
  mgpt::DrawScratch<Threads> scratch;
  std::vector<std::thread> threads;
  for (std::uint32_t rank = 0; rank < kThreadsInAll; ++rank) {
    threads.emplace_back([&, rank] {
      const Threads team(meeting, rank);
      for (std::size_t i = 0; i < cases.size(); ++i) {
        const mgpt::SampleResult drawn = mgpt::draw(team, cases[i].request, scratch);
        if (rank == 0) results[i] = drawn;
        team.sync();  // before the scratch is used again
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  int wrong = 0;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const mgpt::SampleResult expected = mgpt::sample(cases[i].request);
    wrong += expected.status != results[i].status || expected.id != results[i].id ? 1 : 0;
  }
  std::printf("%d of %d draws differ\n", wrong, kCases);
  return wrong == 0 ? 0 : 1;
}
