#include "machine/machine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace mgpt {
namespace {

#if defined(__x86_64__) && defined(__GNUC__)
// Which register states the operating system saves (XCR0).
std::uint64_t enabled_states() {
  std::uint32_t a = 0, b = 0, c = 0, d = 0;
  __cpuid(1, a, b, c, d);
  if ((c & bit_OSXSAVE) == 0) return 0;
  std::uint32_t low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (std::uint64_t{high} << 32) | low;
}
#endif

using Clock = std::chrono::steady_clock;

std::uint64_t read_all(const std::uint64_t* data, std::size_t words) {
  std::uint64_t lanes[32] = {};
  for (std::size_t i = 0; i + 32 <= words; i += 32) {
    for (std::size_t lane = 0; lane < 32; ++lane) lanes[lane] += data[i + lane];
  }
  std::uint64_t sum = 0;
  for (const std::uint64_t lane : lanes) sum += lane;
  return sum;
}

}  // namespace

std::map<std::string, bool> cpu_features() {
  std::map<std::string, bool> features{{"avx2", false},        {"bmi2", false},     {"avx512f", false},
                                       {"avx512bw", false},    {"avx512dq", false}, {"avx512vl", false},
                                       {"avx512_vnni", false}, {"avx_vnni", false}, {"amx_int8", false},
                                       {"neon", false},        {"dotprod", false}};
#if defined(__x86_64__) && defined(__GNUC__)
  const std::uint64_t states = enabled_states();
  const bool avx = (states & 0x6) == 0x6;
  const bool avx512 = (states & 0xE6) == 0xE6;
  const bool amx = (states & 0x60000) == 0x60000;
  std::uint32_t a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) != 0) {
    const std::uint32_t last_subleaf = a;
    features["avx2"] = avx && (b >> 5 & 1) != 0;
    features["bmi2"] = (b >> 8 & 1) != 0;
    features["avx512f"] = avx512 && (b >> 16 & 1) != 0;
    features["avx512dq"] = avx512 && (b >> 17 & 1) != 0;
    features["avx512bw"] = avx512 && (b >> 30 & 1) != 0;
    features["avx512vl"] = avx512 && (b >> 31 & 1) != 0;
    features["avx512_vnni"] = avx512 && (c >> 11 & 1) != 0;
    features["amx_int8"] = amx && (d >> 25 & 1) != 0;
    if (last_subleaf >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0) {
      features["avx_vnni"] = avx && (a >> 4 & 1) != 0;
    }
  }
#elif defined(__aarch64__) && defined(__linux__)
  const unsigned long capabilities = getauxval(AT_HWCAP);
  features["neon"] = (capabilities & HWCAP_ASIMD) != 0;
  features["dotprod"] = (capabilities & HWCAP_ASIMDDP) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
  features["neon"] = features["dotprod"] = true;  // every Apple CPU of this architecture that runs macOS
#endif
  return features;
}

double read_bandwidth(std::size_t bytes, std::size_t threads, double seconds) {
  const std::size_t words = std::max<std::size_t>(bytes / sizeof(std::uint64_t) / threads, 32);
  std::vector<std::uint64_t> data(words * threads, 1);  // written: untouched pages would all be the one zero page
  std::atomic<std::size_t> ready{0};
  std::atomic<std::uint64_t> sink{0};
  std::vector<double> rates(threads, 0.0);
  const auto work = [&](std::size_t index) {
    const std::uint64_t* part = data.data() + index * words;
    ready.fetch_add(1);
    while (ready.load() < threads) std::this_thread::yield();
    std::size_t passes = 0;
    std::uint64_t sum = 0;
    const Clock::time_point start = Clock::now();
    double elapsed = 0;
    do {
      sum += read_all(part, words);
      ++passes;
      elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    } while (elapsed < seconds);
    sink.fetch_add(sum);
    rates[index] = static_cast<double>(passes * words * sizeof(std::uint64_t)) / elapsed;
  };
  std::vector<std::thread> helpers;
  helpers.reserve(threads - 1);
  try {
    for (std::size_t index = 1; index < threads; ++index) helpers.emplace_back(work, index);
  } catch (...) {
    ready.store(threads);  // lets those that did start leave
    for (std::thread& helper : helpers) helper.join();
    throw;
  }
  work(0);
  for (std::thread& helper : helpers) helper.join();
  double total = 0;
  for (const double rate : rates) total += rate;
  return total;
}

}  // namespace mgpt
