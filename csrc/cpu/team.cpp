#include "cpu/team.h"

#include <pthread.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mgpt::cpu {
namespace {

using std::chrono::milliseconds;

// Between two passes the sampler takes some 30 us; a member that waits much longer gives its core to others.
constexpr int kSpins = 20000;
constexpr int kSpinsInPass = 2000;
constexpr std::int64_t kWatch = 100'000;  // ns that a late member is watched before its waiter sleeps
constexpr milliseconds kFirstPatience{20}, kLongestPatience{2000}, kCalm{500};
// So much waiting for members that did not run, within so long, is more than a hiccup of the machine.
constexpr std::int64_t kLoss = 500'000;
constexpr milliseconds kWindow{100};

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

std::int64_t nanoseconds(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return std::int64_t{now.tv_sec} * 1'000'000'000 + now.tv_nsec;
}

}  // namespace

// The members 1, 2, ... of one process, and where all members meet.
class Team::Threads {
 public:
  explicit Threads(int size) : members_(static_cast<std::size_t>(size)) {
    threads_.reserve(static_cast<std::size_t>(size - 1));
    try {
      for (int member = 1; member < size; ++member) {
        threads_.emplace_back([this, member] { serve(member); });
        pthread_getcpuclockid(threads_.back().native_handle(), &of(member).clock);
      }
    } catch (...) {
      stop();
      throw;
    }
  }
  ~Threads() { stop(); }

  bool of_this_process() const { return process_ == getpid(); }

  void run(Call call, const void* work, int active) {
    call_ = call;
    work_ = work;
    active_ = active;
    lost_.store(0, std::memory_order_relaxed);
    waking_ = false;
    for (int member = 1; member < active; ++member) waking_ |= of(member).asleep.load(std::memory_order_relaxed);
    pthread_getcpuclockid(pthread_self(), &of(0).clock);
    for (int member = 1; member < active; ++member) ask(member);
    call(work, 0);
    barrier(0);
  }

  void barrier(int member) {
    const std::uint32_t phase = phase_.load(std::memory_order_relaxed);
    of(member).phase.store(phase + 1, std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == active_) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.store(phase + 1, std::memory_order_release);
      phase_.notify_all();
      return;
    }
    for (int spins = 0; spins < kSpinsInPass; ++spins) {
      if (phase_.load(std::memory_order_acquire) != phase) return;
      pause();
    }
    const std::int64_t start = nanoseconds(CLOCK_MONOTONIC);
    const bool stalled = watch(phase, start);
    // Its core is free for the member that is late.
    while (phase_.load(std::memory_order_acquire) == phase) phase_.wait(phase, std::memory_order_acquire);
    if (stalled) lost_.fetch_add(nanoseconds(CLOCK_MONOTONIC) - start, std::memory_order_relaxed);
  }

  // Nanoseconds that members waited in the last run for one that did not run, and was not just waking up.
  std::int64_t lost() const { return waking_ ? 0 : lost_.load(std::memory_order_relaxed); }

 private:
  struct alignas(64) Member {             // a cache line each: members spin on these
    std::atomic<std::uint32_t> job{0};    // how often it was asked to take part
    std::atomic<std::uint32_t> phase{0};  // the last barrier that it reached
    std::atomic<bool> asleep{false};
    clockid_t clock{};  // of its time on a processor
  };

  Member& of(int member) { return members_[static_cast<std::size_t>(member)]; }

  void serve(int member) {
    std::atomic<std::uint32_t>& job = of(member).job;
    std::uint32_t seen = 0;
    while (true) {
      for (int spin = 0; spin < kSpins && job.load(std::memory_order_acquire) == seen; ++spin) pause();
      if (job.load(std::memory_order_acquire) == seen) {
        of(member).asleep.store(true, std::memory_order_relaxed);
        while (job.load(std::memory_order_acquire) == seen) job.wait(seen, std::memory_order_acquire);
        of(member).asleep.store(false, std::memory_order_relaxed);
      }
      ++seen;
      if (stopping_.load(std::memory_order_relaxed)) return;
      call_(work_, member);
      barrier(member);
    }
  }

  void ask(int member) {
    of(member).job.fetch_add(1, std::memory_order_release);
    of(member).job.notify_one();
  }

  void stop() {
    stopping_.store(true, std::memory_order_relaxed);
    for (int member = 1; member <= static_cast<int>(threads_.size()); ++member) ask(member);
    for (std::thread& thread : threads_) thread.join();
  }

  // Watches the members that are late for a while; true if one of them does not run.
  bool watch(std::uint32_t phase, std::int64_t start) {
    std::int64_t clocks[kWatched] = {};
    const int count = std::min<int>(active_, kWatched);
    for (int member = 0; member < count; ++member) clocks[member] = nanoseconds(of(member).clock);
    std::int64_t waited = 0;
    while (waited < kWatch) {
      for (int spins = 0; spins < kSpinsInPass / 4; ++spins) {
        if (phase_.load(std::memory_order_acquire) != phase) return false;
        pause();
      }
      waited = nanoseconds(CLOCK_MONOTONIC) - start;
    }
    for (int member = 0; member < count; ++member) {
      const bool late = of(member).phase.load(std::memory_order_relaxed) != phase + 1;
      if (late && 2 * (nanoseconds(of(member).clock) - clocks[member]) < waited) return true;
    }
    return false;
  }

  static constexpr int kWatched = 64;

  const pid_t process_ = getpid();
  std::vector<Member> members_;
  std::vector<std::thread> threads_;
  Call call_ = nullptr;
  const void* work_ = nullptr;
  int active_ = 1;
  bool waking_ = false;  // the run began with members that slept
  std::atomic<bool> stopping_{false};
  alignas(64) std::atomic<std::int64_t> lost_{0};
  alignas(64) std::atomic<std::uint32_t> phase_{0};
  alignas(64) std::atomic<int> arrived_{0};
};

Team::Team(int size)
    : size_(size), active_(size), threads_(std::make_unique<Threads>(size)), patience_(kFirstPatience) {}

Team::~Team() {
  // In a forked child the threads are its parent's: nothing of them can be waited for.
  if (!threads_->of_this_process()) static_cast<void>(threads_.release());
}

void Team::run(Call call, const void* work) {
  if (size_ > 1) choose();
  if (active_ == 1) {
    call(work, 0);
    return;
  }
  threads_->run(call, work, active_);
  learn();
}

void Team::barrier(int member) {
  if (active_ > 1) threads_->barrier(member);
}

// How many members the next pass has.
void Team::choose() {
  if (!threads_->of_this_process()) {  // a forked child, perhaps of a parent in mid-pass
    auto fresh = std::make_unique<Threads>(size_);
    static_cast<void>(threads_.release());
    threads_ = std::move(fresh);
    active_ = size_;
  }
  if (active_ < size_ && Clock::now() - changed_ >= patience_) {
    ++active_;
    changed_ = Clock::now();
  }
}

// Goes on with fewer members for a while where much was lost by waiting, each time for longer; calm passes make it
// patient again.
void Team::learn() {
  if (const std::int64_t lost = threads_->lost(); lost > 0) {
    const Clock::time_point now = Clock::now();
    lost_ = now - lost_last_ < kWindow ? lost_ + lost : lost;
    lost_last_ = now;
    if (lost_ < kLoss) return;
    active_ = std::max(1, active_ - std::max(1, active_ / 4));
    changed_ = now;
    lost_ = 0;
    patience_ = std::min(2 * patience_, kLongestPatience);
  } else if (patience_ > kFirstPatience && Clock::now() - std::max(changed_, lost_last_) >= kCalm) {
    patience_ = kFirstPatience;
  }
}

}  // namespace mgpt::cpu
