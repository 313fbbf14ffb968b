// Threads that work on one pass together: each does its share, then waits for the others at a barrier.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace mgpt::cpu {

class Team {
 public:
  // Member 0 is the thread that calls `run`; the others are started here.
  explicit Team(int size);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int size() const { return size_; }

  // Calls work(member) on every member at once and returns when all are done. One caller at a time.
  template <class Work>
  void run(const Work& work) {
    run([](const void* of, int member) { (*static_cast<const Work*>(of))(member); }, &work);
  }

  // For use inside `work`: returns once every member has called it.
  void barrier();

 private:
  using Call = void (*)(const void* work, int member);  // not std::function, which would allocate at each pass

  void run(Call call, const void* work);
  void serve(int member);
  void stop();

  int size_;
  Call call_ = nullptr;
  const void* work_ = nullptr;
  // Own cache lines: members spin on these.
  alignas(64) std::atomic<std::uint32_t> job_{0};
  alignas(64) std::atomic<std::uint32_t> phase_{0};
  alignas(64) std::atomic<int> arrived_{0};
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> threads_;
};

// The part of [0, count) that a member of a team takes.
struct Range {
  std::int64_t first, last;
};
inline Range share(std::int64_t count, int member, int size) {
  return {count * member / size, count * (member + 1) / size};
}

}  // namespace mgpt::cpu
