#include <map>

#include "../machine.h"
#include "kernels.h"

namespace mgpt::cpu {

extern const Kernels kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avxvnni;
extern const Kernels kernels_avx512vnni;
#elif defined(__aarch64__)
extern const Kernels kernels_dotprod;
#endif

namespace {

// The fastest first.
std::vector<const Kernels*> available() {
  std::vector<const Kernels*> found;
  std::map<std::string, bool> has = cpu_features();
#if defined(__x86_64__)
  if (has["avx2"] && has["avx512_vnni"]) found.push_back(&kernels_avx512vnni);
#if defined(MGPT_AVXVNNI)
  if (has["avx2"] && has["avx_vnni"]) found.push_back(&kernels_avxvnni);
#endif
  if (has["avx2"]) found.push_back(&kernels_avx2);
#elif defined(__aarch64__)
  if (has["dotprod"]) found.push_back(&kernels_dotprod);
#endif
  found.push_back(&kernels_portable);
  return found;
}

}  // namespace

const Kernels& best_kernels() {
  static const Kernels* const best = available().front();
  return *best;
}

const Kernels* kernels_named(const std::string& name) {
  for (const Kernels* kernels : available()) {
    if (name == kernels->name) return kernels;
  }
  return nullptr;
}

std::vector<std::string> kernel_names() {
  std::vector<std::string> names;
  for (const Kernels* kernels : available()) names.emplace_back(kernels->name);
  return names;
}

}  // namespace mgpt::cpu
