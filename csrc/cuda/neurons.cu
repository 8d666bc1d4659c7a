// The choice of a neuron, one CTA a row: all draws at once, and only when none of them qualifies a look at all neurons. And the marks of
// neurons that were positive, one thread each.
#include "core/neurons.h"
#include "cuda/common.cuh"
#include "cuda/launch.h"

namespace compdx::cuda {
namespace {

constexpr int kSelectThreads = 512;
constexpr int kCoverThreads = 256;

__device__ __forceinline__ bool is_active(const uint8_t* active, int64_t row) {
    return active == nullptr || active[row] != 0;
}

// The first draw that qualifies; the same in all threads.
__device__ __forceinline__ Neuron select_by_draws(const SelectTask& task, const Stream& stream, int64_t row) {
    __shared__ int32_t earliest[kSelectThreads / kWarp];
    for (int64_t first = 0; first < task.trials; first += kSelectThreads) {
        const int64_t trial = first + threadIdx.x;
        bool qualifies = false;
        if (trial < task.trials) {
            const Neuron neuron = drawn_neuron(task, stream, static_cast<uint32_t>(trial));
            qualifies = is_lost(task.layers[neuron.layer], row, neuron.position);
        }
        const unsigned lanes = __ballot_sync(kAllLanes, qualifies);
        if (lane_index() == 0) {
            earliest[warp_index()] = lanes != 0 ? warp_index() * kWarp + __ffs(lanes) - 1 : kSelectThreads;
        }
        __syncthreads();
        int32_t thread = kSelectThreads;
        for (int w = 0; w < kSelectThreads / kWarp; ++w) thread = min(thread, earliest[w]);
        __syncthreads();  // the next round writes where this one has read
        if (thread < kSelectThreads) return drawn_neuron(task, stream, static_cast<uint32_t>(first + thread));
    }
    return {-1, -1};
}

// The lost neuron of a layer that has `place` of them before it; the same in all threads.
__device__ __forceinline__ int64_t find_lost(const Layer& layer, int64_t row, int64_t place, int32_t* warps) {
    __shared__ int64_t found;
    int64_t before = 0;
    for (int64_t base = 0; before <= place; base += kSelectThreads) {
        const int64_t position = base + threadIdx.x;
        const bool lost = position < layer.count && is_lost(layer, row, position);
        const Ordered sum = ordered_sum<int32_t>(lost, warps);
        if (lost && before + sum.before == place) found = position;
        before += sum.total;
    }
    __syncthreads();
    return found;
}

__device__ __forceinline__ Neuron select_by_scan(const SelectTask& task, const Stream& stream, int64_t row) {
    __shared__ int32_t warps[kWarp];
    int64_t* lost = reinterpret_cast<int64_t*>(dynamic_shared());
    uint64_t* weights = reinterpret_cast<uint64_t*>(lost + task.layer_count);
    for (int32_t l = 0; l < task.layer_count; ++l) {
        const Layer& layer = task.layers[l];
        int32_t mine = 0;
#pragma unroll 4
        for (int64_t position = threadIdx.x; position < layer.count; position += kSelectThreads) {
            mine += is_lost(layer, row, position);
        }
        const int32_t total = ordered_sum(mine, warps).total;
        if (threadIdx.x == 0) lost[l] = total;
    }
    __syncthreads();
    for (int32_t l = threadIdx.x; l < task.layer_count; l += kSelectThreads) {
        weights[l] = layer_weight(lost[l], task.layers[l].count);
    }
    __syncthreads();
    const ScanDraw draw = scan_draw(stream, lost, weights, task.layer_count);
    if (draw.layer < 0) return {-1, -1};
    return {draw.layer, find_lost(task.layers[draw.layer], row, draw.place, warps)};
}

__global__ void __launch_bounds__(kSelectThreads) select_kernel(const __grid_constant__ SelectTask task) {
    const int64_t row = blockIdx.x;
    Neuron neuron = {-1, -1};
    if (is_active(task.active, row)) {
        const Stream stream = {task.seed, task.identities[row], task.steps[row]};
        neuron = select_by_draws(task, stream, row);
        if (neuron.layer < 0) neuron = select_by_scan(task, stream, row);
    }
    if (threadIdx.x != 0) return;
    task.layer[row] = neuron.layer;
    task.position[row] = neuron.position;
}

// The layer of neuron number `neuron`: the last one that does not begin after it.
__device__ __forceinline__ const Layer& layer_of(const CoverTask& task, int64_t neuron) {
    int32_t low = 0;
    int32_t high = task.layer_count - 1;
    while (low < high) {
        const int32_t middle = (low + high + 1) / 2;
        if (task.layers[middle].first <= neuron) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return task.layers[low];
}

__global__ void __launch_bounds__(kCoverThreads) cover_kernel(const __grid_constant__ CoverTask task) {
    const int64_t neuron = static_cast<int64_t>(blockIdx.x) * kCoverThreads + threadIdx.x;
    if (neuron >= task.neurons) return;
    const Layer& layer = layer_of(task, neuron);
    const int64_t position = neuron - layer.first;
    if (layer.covered[position] == 1) return;
    const int64_t step = layer.values[0].row;
    const float* values = layer.values[0].data + offset_of(layer, layer.values[0], 0, position);
    constexpr int together = 4;  // loads in flight before the next look at what they say
    bool positive = false;
    for (int64_t row = 0; row < task.count && !positive; row += together) {
#pragma unroll
        for (int i = 0; i < together; ++i) {
            if (row + i < task.count && is_active(task.active, row + i)) positive |= values[(row + i) * step] > 0.0f;
        }
    }
    if (positive) layer.covered[position] = 1;
}

}  // namespace

void select_neurons(const SelectTask& task, void* stream) {
    if (task.count == 0) return;
    const size_t shared = static_cast<size_t>(task.layer_count) * (sizeof(int64_t) + sizeof(uint64_t));
    static_assert(kMaxLayers * (sizeof(int64_t) + sizeof(uint64_t)) <= 32768, "room that every device has");
    launch("select_neurons", select_kernel, {blocks_for(task.count, 1, "select_neurons"), kSelectThreads, shared},
           stream, task);
}

void cover(const CoverTask& task, void* stream) {
    if (task.count == 0) return;
    launch("cover", cover_kernel, {blocks_for(task.neurons, kCoverThreads, "cover"), kCoverThreads}, stream, task);
}

}  // namespace compdx::cuda
