// The instruction sets that kernels are compiled for, and which of them this machine runs. CMakeLists.txt compiles each
// file of kernels once per set, with MGPT_SET naming it; every set gives the same bits.
#pragma once

#include <string>
#include <string_view>
#include <vector>

// Calls X(set) for each set of the architecture that is compiled for, the fastest first.
#if defined(__x86_64__)
#if defined(MGPT_AVXVNNI)
#define MGPT_SETS(X) X(avx512vnni) X(avxvnni) X(avx2) X(portable)
#else
#define MGPT_SETS(X) X(avx512vnni) X(avx2) X(portable)
#endif
#elif defined(__aarch64__)
#define MGPT_SETS(X) X(dotprod) X(portable)
#else
#define MGPT_SETS(X) X(portable)
#endif

// In a file of kernels: `name`_avx2 and so on.
#define MGPT_JOIN_(a, b) a##_##b
#define MGPT_JOIN(a, b) MGPT_JOIN_(a, b)
#define MGPT_OF_SET(name) MGPT_JOIN(name, MGPT_SET)

namespace mgpt {

// Names of those that this machine runs, the fastest first.
const std::vector<std::string>& instruction_sets();

// A table of kernels, compiled for one set.
template <class Table>
struct Compiled {
  std::string_view set;
  const Table* table;
};

// The table of a set that this machine runs, the fastest if `name` is empty; null if it runs none of that name.
template <class Table, class Tables>
const Table* table_of(const Tables& tables, std::string_view name) {
  for (const std::string& set : instruction_sets()) {
    if (!name.empty() && name != set) continue;
    for (const Compiled<Table>& compiled : tables) {
      if (compiled.set == set) return compiled.table;
    }
  }
  return nullptr;
}

}  // namespace mgpt
