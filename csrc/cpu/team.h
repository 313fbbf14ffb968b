// Threads that work on one pass together: each does its share, then waits for the others at a barrier.
//
// Results do not depend on how many members take part, so a pass takes fewer where other processes hold the cores: a
// member that waits for one that does not run tells the next passes to do without it. After a fork the child's first
// pass starts threads of its own.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

namespace mgpt::cpu {

class Team {
 public:
  // Member 0 is the thread that calls `run`; the others are started here. Throws std::system_error where one can't be.
  explicit Team(int size);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  // Most members of a pass.
  int size() const { return size_; }
  // Those of the pass under way: members 0 to active() - 1.
  int active() const { return active_; }

  // Calls work(member) on the active members at once and returns when all are done. One caller at a time.
  template <class Work>
  void run(const Work& work) {
    run([](const void* of, int member) { (*static_cast<const Work*>(of))(member); }, &work);
  }

  // For use inside `work`: returns once every active member has called it.
  void barrier(int member);

 private:
  using Call = void (*)(const void* work, int member);  // not std::function, which would allocate at each pass
  using Clock = std::chrono::steady_clock;
  class Threads;

  void run(Call call, const void* work);
  void choose();
  void learn();

  int size_, active_;
  std::unique_ptr<Threads> threads_;
  Clock::time_point changed_{};           // when `active_` last was
  Clock::time_point lost_last_{};         // when members last waited for one that did not run
  std::int64_t lost_ = 0;                 // nanoseconds of that, lately
  std::chrono::milliseconds patience_{};  // how long fewer members are kept before one more is tried
};

// The part of [0, count) that a member of a team takes.
struct Range {
  std::int64_t first, last;
};
inline Range share(std::int64_t count, int member, int size) {
  return {count * member / size, count * (member + 1) / size};
}

}  // namespace mgpt::cpu
