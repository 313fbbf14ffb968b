// Teams of 4 and of 32 lanes, one thread a lane, add in the order of arithmetic/order.h: what a GPU's warps will do.
#include <algorithm>
#include <array>
#include <barrier>
#include <cstdint>
#include <thread>
#include <vector>

#include "arithmetic/exponential.h"
#include "arithmetic/order.h"

namespace {

using mgpt::order::kChunk;
using mgpt::order::kSpan;
using mgpt::order::Pairs;
using mgpt::order::strands;

template <int lanes>
struct Meeting {
  std::barrier<> all{lanes};
  std::array<float, lanes> values{};
};

template <int lanes>
class Team {
 public:
  static constexpr int kLanes = lanes;

  Team(Meeting<lanes>& meeting, int lane) : meeting_(meeting), lane_(lane) {}
  int lane() const { return lane_; }
  float across(float x, int mask) const {
    meeting_.values[static_cast<std::size_t>(lane_)] = x;
    meeting_.all.arrive_and_wait();
    const float other = meeting_.values[static_cast<std::size_t>(lane_ ^ mask)];
    meeting_.all.arrive_and_wait();
    return other;
  }
  float largest(float x) const {
    for (int mask = lanes / 2; mask > 0; mask /= 2) {
      const float other = across(x, mask);
      x = other > x ? other : x;
    }
    return x;
  }

 private:
  Meeting<lanes>& meeting_;
  int lane_;
};

template <int lanes, class Work>
void together(const Work& work) {
  Meeting<lanes> meeting;
  std::vector<std::thread> threads;
  for (int lane = 0; lane < lanes; ++lane) {
    threads.emplace_back([&, lane] { work(Team<lanes>(meeting, lane)); });
  }
  for (std::thread& thread : threads) thread.join();
}

template <class Work>
void with_lanes(int lanes, const Work& work) {
  lanes == 4 ? together<4>(work) : together<32>(work);
}

}  // namespace

extern "C" {

// y[i] = the sum of row i of x [rows, size].
void strands_of(const float* x, std::int64_t rows, std::int64_t size, int lanes, float* y) {
  with_lanes(lanes, [&](const auto& team) {
    for (std::int64_t row = 0; row < rows; ++row) {
      const float sum = strands(team, size, [&](std::int64_t i) { return x[row * size + i]; });
      if (team.lane() == 0) y[row] = sum;
    }
  });
}

// y = softmax(scores) . values [positions, dim], each value times its scale.
void attention_of(const float* scores, const std::int8_t* values, const float* scales, std::int64_t positions,
                  std::int64_t dim, int lanes, float* y) {
  with_lanes(lanes, [&](const auto& team) {
    const std::int64_t spans = (positions + kSpan - 1) / kSpan, step = team.kLanes;
    std::vector<float> most(static_cast<std::size_t>(spans)), sums(most), mixed(most);
    float best = -__builtin_inff();
    for (std::int64_t span = 0; span < spans; ++span) {
      const std::int64_t first = span * kSpan, count = std::min(positions - first, kSpan);
      float largest = -__builtin_inff();
      for (std::int64_t i = team.lane(); i < count; i += step) largest = std::max(largest, scores[first + i]);
      largest = team.largest(largest);
      const auto weight = [&](std::int64_t i) { return mgpt::exponential(scores[first + i] - largest); };
      most[static_cast<std::size_t>(span)] = largest;
      sums[static_cast<std::size_t>(span)] = strands(team, count, weight);
      best = std::max(best, largest);
    }
    Pairs<float> total;
    for (std::int64_t span = 0; span < spans; ++span) {
      const auto at = static_cast<std::size_t>(span);
      total.add(sums[at] * mgpt::exponential(most[at] - best));
    }
    const float share = 1.0f / total.total();
    for (std::int64_t d = team.lane(); d < dim; d += step) {
      Pairs<float> all;
      for (std::int64_t span = 0; span < spans; ++span) {
        const std::int64_t first = span * kSpan, last = std::min(positions, first + kSpan);
        const float largest = most[static_cast<std::size_t>(span)];
        float parities[2] = {};
        for (std::int64_t i = first; i < last; ++i) {
          const float scaled = mgpt::exponential(scores[i] - largest) * scales[i];
          parities[(i - first) % 2] += static_cast<float>(values[i * dim + d]) * scaled;
        }
        all.add((parities[0] + parities[1]) * mgpt::exponential(largest - best));
      }
      y[d] = all.total() * share;
    }
  });
}

// y[channel] = the sum of terms [groups, channels] in chunks, a lane for every so many channels.
void chunks_of(const float* terms, std::int64_t groups, std::int64_t channels, int lanes, float* y) {
  with_lanes(lanes, [&](const auto& team) {
    for (std::int64_t channel = team.lane(); channel < channels; channel += team.kLanes) {
      Pairs<float> chunks;
      for (std::int64_t first = 0; first < groups; first += kChunk) {
        float sum = 0;
        for (std::int64_t g = first; g < std::min(groups, first + kChunk); ++g) sum += terms[g * channels + channel];
        chunks.add(sum);
      }
      y[channel] = chunks.total();
    }
  });
}
}
