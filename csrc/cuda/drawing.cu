// The sampler, and the step of a picture around it.
#include <cuda_runtime_api.h>

#include "cuda/mgpt_cuda.h"
#include "cuda/team.cuh"
#include "sampling/picture_step.h"

namespace mgpt {
namespace {

// One block on a multiprocessor is enough: without the 1 the compiler saves registers for two, and spills.
__global__ void __launch_bounds__(Block::kThreads, 1)
    sample_kernel(const SampleRequest* requests, SampleResult* results) {
  __shared__ DrawScratch<Block> scratch;
  const Block team;
  const SampleRequest request = requests[blockIdx.x];
  const SampleResult drawn = draw(team, request, scratch);
  if (team.rank() == 0) results[blockIdx.x] = drawn;
}

__global__ void __launch_bounds__(Block::kThreads, 1) step_kernel(const Pictures all) {
  __shared__ DrawScratch<Block> scratch;
  step(Block{}, all, blockIdx.x, scratch);
}

__global__ void roll_back_kernel(const Pictures all, std::uint32_t picture, std::uint32_t next) {
  Cursor cursor = all.cursors[picture];
  go_back(next, cursor);
  write_feed(all, picture, cursor);
  all.cursors[picture] = cursor;
}

bool valid(const Pictures& all) {
  return all.width >= 1 && all.guided <= 1 && all.columns >= 1;
}

}  // namespace
}  // namespace mgpt

int mgpt_cuda_sample(const mgpt::SampleRequest* requests, std::uint32_t count, mgpt::SampleResult* results,
                     mgpt::Stream stream) {
  if (count == 0) return cudaErrorInvalidValue;
  mgpt::sample_kernel<<<count, mgpt::Block::kThreads, 0, stream>>>(requests, results);
  return cudaGetLastError();
}

int mgpt_cuda_step(const mgpt::Pictures* all, std::uint32_t count, mgpt::Stream stream) {
  if (count == 0 || !mgpt::valid(*all)) return cudaErrorInvalidValue;
  mgpt::step_kernel<<<count, mgpt::Block::kThreads, 0, stream>>>(*all);
  return cudaGetLastError();
}

int mgpt_cuda_roll_back(const mgpt::Pictures* all, std::uint32_t picture, std::uint32_t next, mgpt::Stream stream) {
  if (next == 0 || !mgpt::valid(*all)) return cudaErrorInvalidValue;
  mgpt::roll_back_kernel<<<1, 1, 0, stream>>>(*all, picture, next);
  return cudaGetLastError();
}

const char* mgpt_cuda_error(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
