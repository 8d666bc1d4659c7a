// What devices there are.
#include <cuda_runtime.h>

#include "cuda/launch.h"

namespace compdx::cuda {

int device_count() {
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
    cudaGetLastError();  // no driver is an answer, not an error to be found by the next call
    return 0;
}

}  // namespace compdx::cuda
