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

#include "sampling/block_draw.h"
#include "sampling/kernels.h"
#include "sampling/picture_step.h"

namespace mgpt::sampling {
extern const Kernels kernels_portable;
}

namespace {

// What the CPU's sampler draws.
mgpt::SampleResult one_thread(const mgpt::SampleRequest& request) {
  std::vector<std::uint32_t> scratch(3 * std::size_t{request.count});
  return mgpt::sampling::kernels_portable.draw(request, scratch.data());
}

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

// `work(team, scratch)` by all threads of a team.
template <class Work>
void together(const Work& work) {
  Meeting meeting;
  mgpt::DrawScratch<Threads> scratch;
  std::vector<std::thread> threads;
  for (std::uint32_t rank = 0; rank < kThreadsInAll; ++rank) {
    threads.emplace_back([&, rank] { work(Threads(meeting, rank), scratch); });
  }
  for (std::thread& thread : threads) thread.join();
}

int draws_that_differ() {
  constexpr int kCases = 60;
  std::mt19937 random(5);
  std::vector<Case> cases;
  for (int i = 0; i < kCases; ++i) cases.push_back(random_case(random));
  std::vector<mgpt::SampleResult> results(cases.size());
  together([&](const Threads& team, mgpt::DrawScratch<Threads>& scratch) {
    for (std::size_t i = 0; i < cases.size(); ++i) {
      const mgpt::SampleResult drawn = mgpt::draw(team, cases[i].request, scratch);
      if (team.rank() == 0) results[i] = drawn;
      team.sync();  // before the scratch is used again
    }
  });
  int wrong = 0;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const mgpt::SampleResult expected = one_thread(cases[i].request);
    wrong += expected.status != results[i].status || expected.id != results[i].id ? 1 : 0;
  }
  return wrong;
}

// A picture of codes and forced tokens, from the same logits at every place.
int tokens_that_differ() {
  constexpr std::uint32_t kCodes = 50, kLow = 10;
  std::mt19937 random(6);
  std::normal_distribution<float> normal(0.0f, 4.0f);
  std::vector<float> logits(std::size_t{2} * kCodes);
  for (float& x : logits) x = normal(random);
  const std::vector<std::int32_t> forced{0, -1, -1, 3, -1, 3, 3, -1};
  const auto size = static_cast<std::uint32_t>(forced.size());
  std::vector<std::int32_t> tokens(forced.size(), 0);
  const mgpt::Picture picture{forced.data(), tokens.data(), size, 7, kLow, kLow + kCodes, 20, 4.0f, 1.0f, 99};
  mgpt::Cursor cursor{1, 1, mgpt::SampleStatus::token};
  std::array<std::array<std::int32_t, 2>, 4> feed{};
  const mgpt::Feed fed{feed[0].data(), feed[1].data(), feed[2].data(), feed[3].data()};
  const mgpt::Pictures all{&picture, &cursor, fed, logits.data(), kLow, kCodes, 1, 1};
  together([&](const Threads& team, mgpt::DrawScratch<Threads>& scratch) {
    for (std::size_t i = 0; i < forced.size(); ++i) {
      mgpt::step(team, all, 0, scratch);
      team.sync();  // the next launch
    }
  });
  int wrong = cursor.next == size ? 0 : 1;
  for (std::uint32_t i = 1; i < size; ++i) {
    const mgpt::SampleResult drawn =
        one_thread({logits.data(), logits.data() + kCodes, kLow, kCodes, 20, 4.0f, 1.0f, 99, 7 + i});
    wrong += tokens[i] != (forced[i] < 0 ? static_cast<std::int32_t>(drawn.id) : forced[i]) ? 1 : 0;
  }
  return wrong;
}

}  // namespace

int main() {
  const int draws = draws_that_differ(), tokens = tokens_that_differ();
  std::printf("%d draws and %d tokens of a picture differ\n", draws, tokens);
  return draws + tokens == 0 ? 0 : 1;
}
