#include "cpu/team.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace mgpt::cpu {
namespace {

// Between two passes the sampler takes some 30 us; a member that waits much longer gives its core to others.
constexpr int kSpins = 20000;
constexpr int kSpinsInPass = 2000;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

}  // namespace

Team::Team(int size) : size_(size) {
  threads_.reserve(static_cast<std::size_t>(size - 1));
  try {
    for (int member = 1; member < size; ++member) threads_.emplace_back([this, member] { serve(member); });
  } catch (...) {
    stop();
    throw;
  }
}

Team::~Team() {
  stop();
}

void Team::stop() {
  stopping_.store(true, std::memory_order_relaxed);
  job_.fetch_add(1, std::memory_order_release);
  job_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void Team::run(Call call, const void* work) {
  if (size_ == 1) {
    call(work, 0);
    return;
  }
  call_ = call;
  work_ = work;
  job_.fetch_add(1, std::memory_order_release);
  job_.notify_all();
  call(work, 0);
  barrier();
}

void Team::serve(int member) {
  std::uint32_t seen = 0;
  while (true) {
    for (int spin = 0; spin < kSpins && job_.load(std::memory_order_acquire) == seen; ++spin) pause();
    while (job_.load(std::memory_order_acquire) == seen) job_.wait(seen, std::memory_order_acquire);
    ++seen;
    if (stopping_.load(std::memory_order_relaxed)) return;
    call_(work_, member);
    barrier();
  }
}

void Team::barrier() {
  if (size_ == 1) return;
  const std::uint32_t phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  int spins = 0;
  while (phase_.load(std::memory_order_acquire) == phase) {
    pause();
    // More members than free cores: spinning would keep the one that is late from running.
    if (++spins > kSpinsInPass) std::this_thread::yield();
  }
}

}  // namespace mgpt::cpu
