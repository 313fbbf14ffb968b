#include "sampling/sampler.h"

#include <atomic>
#include <vector>

#include "arithmetic/float_mode.h"
#include "machine/instruction_sets.h"
#include "sampling/kernels.h"

namespace mgpt {
namespace sampling {

#define MGPT_DECLARE(set) extern const Kernels kernels_##set;
MGPT_SETS(MGPT_DECLARE)
#undef MGPT_DECLARE

}  // namespace sampling

namespace {

const sampling::Kernels* kernels_of(std::string_view set) {
#define MGPT_LIST(set) {#set, &sampling::kernels_##set},
  static const Compiled<sampling::Kernels> tables[] = {MGPT_SETS(MGPT_LIST)};
#undef MGPT_LIST
  return table_of<sampling::Kernels>(tables, set);
}

std::atomic<const sampling::Kernels*>& active() {
  static std::atomic<const sampling::Kernels*> kernels{kernels_of("")};
  return kernels;
}

}  // namespace

SampleResult sample(const SampleRequest& request) {
  thread_local std::vector<std::uint32_t> scratch;
  const std::size_t needed = 3 * std::size_t{request.count};
  if (scratch.size() < needed) scratch.resize(needed);
  const FloatMode mode;
  return active().load(std::memory_order_relaxed)->draw(request, scratch.data());
}

void gumbel(std::uint64_t seed, std::uint32_t position, const std::uint32_t* ids, std::size_t count, float* noise) {
  const FloatMode mode;
  active().load(std::memory_order_relaxed)->noise(seed, position, ids, count, noise);
}

bool use_instruction_set(std::string_view set) {
  const sampling::Kernels* const kernels = kernels_of(set);
  if (kernels == nullptr) return false;
  active().store(kernels, std::memory_order_relaxed);
  return true;
}

}  // namespace mgpt
