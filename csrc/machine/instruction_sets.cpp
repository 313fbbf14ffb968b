#include "machine/instruction_sets.h"

#include <algorithm>
#include <initializer_list>
#include <map>

#include "machine/machine.h"

namespace mgpt {
namespace {

struct Needs {
  std::string_view set;
  std::initializer_list<const char*> features;
};

// What the compiler may use in each set (CMakeLists.txt).
const Needs kNeeds[] = {
    {"avx512vnni", {"avx2", "bmi2", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}},
    {"avxvnni", {"avx2", "bmi2", "avx_vnni"}},
    {"avx2", {"avx2", "bmi2"}},
    {"dotprod", {"dotprod"}},
};

std::vector<std::string> available() {
  std::map<std::string, bool> has = cpu_features();
  std::vector<std::string> sets;
  const auto add = [&](const char* set) {
    for (const Needs& needs : kNeeds) {
      const auto here = [&](const char* feature) { return has[feature]; };
      if (needs.set == set && !std::ranges::all_of(needs.features, here)) return;
    }
    sets.emplace_back(set);
  };
#define MGPT_ADD(set) add(#set);
  MGPT_SETS(MGPT_ADD)
#undef MGPT_ADD
  return sets;
}

}  // namespace

const std::vector<std::string>& instruction_sets() {
  static const std::vector<std::string> sets = available();
  return sets;
}

}  // namespace mgpt
