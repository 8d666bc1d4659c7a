// One step of a gradient search, one CTA an image: every value is read once and written once.
#include "core/descent.h"
#include "cuda/common.cuh"
#include "cuda/launch.h"

namespace compdx::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kThreadsOfLarge = 1024;
constexpr int32_t kLargeImage = 16384;

unsigned threads_for(const Shape& shape) { return shape.size() > kLargeImage ? kThreadsOfLarge : kThreads; }

__device__ __forceinline__ Change descend_plane(const DescendTask& task, int64_t at, int32_t c) {
    constexpr int each = 4;  // 16 bytes of state a thread
    const Channel channel = channel_of(task, c);
    const float* table = task.table + c * 256;
    const bool has_total = task.total != nullptr;
    const int32_t plane = task.shape.plane();
    Change change = {0, 0};
    for (int32_t i = each * threadIdx.x; i < plane; i += each * blockDim.x) {
        const int32_t left = plane - i;
        Pack<float, each> state = load_pack<each>(task.state + at + i, left);
        const Pack<float, each> gradient = load_pack<each>(task.gradient + at + i, left);
        const Pack<uint8_t, each> origin = load_pack<each>(task.origin + at + i, left);
        Pack<uint8_t, each> picture;
#pragma unroll
        for (int j = 0; j < each; ++j) {
            const float centre = has_total ? table[origin.v[j]] : 0.0f;
            state.v[j] = descended(channel, state.v[j], gradient.v[j], centre);
            picture.v[j] = picture_of(channel, state.v[j]);
            if (task.lattice) state.v[j] = table[picture.v[j]];
            if (j < left) add_pixel(change, picture.v[j], origin.v[j]);
        }
        store_pack(task.state + at + i, left, state);
        store_pack(task.picture + at + i, left, picture);
    }
    return change;
}

__global__ void __launch_bounds__(kThreadsOfLarge) descend_kernel(const __grid_constant__ DescendTask task) {
    const int64_t image = blockIdx.x;
    Change change = {0, 0};
    if (task.active == nullptr || task.active[image] != 0) {
        for (int32_t c = 0; c < task.shape.channels; ++c) {
            const int64_t at = image * task.shape.size() + static_cast<int64_t>(c) * task.shape.plane();
            const Change here = descend_plane(task, at, c);
            change.squares += here.squares;
            change.largest = max(change.largest, here.largest);
        }
    }
    change = block_change<kThreadsOfLarge / kWarp>(change);
    if (threadIdx.x != 0) return;
    task.l2_squared[image] = change.squares;
    task.linf[image] = static_cast<uint8_t>(change.largest);
}

}  // namespace

void descend(const DescendTask& task, void* stream) {
    if (task.count == 0) return;
    launch("descend", descend_kernel, {blocks_for(task.count, 1, "descend"), threads_for(task.shape)}, stream, task);
}

}  // namespace compdx::cuda
