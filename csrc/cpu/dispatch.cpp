#include "cpu/kernels.h"
#include "machine/instruction_sets.h"

namespace mgpt::cpu {

#define MGPT_DECLARE(set) extern const Kernels kernels_##set;
MGPT_SETS(MGPT_DECLARE)
#undef MGPT_DECLARE

const Kernels* kernels_of(std::string_view set) {
#define MGPT_LIST(set) {#set, &kernels_##set},
  static const Compiled<Kernels> tables[] = {MGPT_SETS(MGPT_LIST)};
#undef MGPT_LIST
  return table_of<Kernels>(tables, set);
}

}  // namespace mgpt::cpu
