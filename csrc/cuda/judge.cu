// The verdict on every query, one warp each.
#include "cuda/launch.h"
#include "cuda/score.cuh"

namespace compdx::cuda {
namespace {

constexpr int kWarpsPerBlock = 4;

// Whether the state is farther than the threshold from all that the chain has seen; if so, it is entered.
__device__ __forceinline__ bool enter_nearest(const Rules& rules, const Slots& slots, int64_t slot, uint32_t states,
                                              const uint16_t* state, int32_t classes) {
    const int64_t width = 2 * static_cast<int64_t>(classes);
    uint16_t* archive = static_cast<uint16_t*>(slots.coverage) + slot * rules.capacity * width;
    const uint32_t held = states < rules.capacity ? states : rules.capacity;
    for (uint32_t i = 0; i < held; ++i) {
        uint64_t distance = 0;
        for (int64_t k = lane_index(); k < width; k += kWarp)
            distance += squared_difference(state[k], archive[i * width + k]);
        if (warp_sum(distance) <= rules.threshold) return false;
    }
    uint16_t* entry = archive + states % rules.capacity * width;
    for (int64_t k = lane_index(); k < width; k += kWarp) entry[k] = state[k];
    return true;
}

__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    judge_kernel(const __grid_constant__ Rules rules, const __grid_constant__ Slots slots, const float* original,
                 const float* compressed, int32_t classes) {
    const int64_t slot = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + warp_index();
    if (slot >= slots.count) return;
    Chain& chain = slots.chains[slot];
    if (!is_working(chain.status)) return;
    uint16_t* state = nullptr;  // of both models, for nearest only
    if (rules.coverage == Coverage::nearest) {
        state = reinterpret_cast<uint16_t*>(dynamic_shared()) + warp_index() * 2 * classes;
    }
    uint16_t* state_of_compressed = state == nullptr ? nullptr : state + classes;
    const Scored a = score_row<true>(original + slot * classes, classes, rules.original_scores, 0, rules.grid, state);
    const Scored b = score_row<true>(compressed + slot * classes, classes, rules.compressed_scores, 1, rules.grid,
                                     state_of_compressed);
    const uint32_t states = chain.states;  // before lane 0 changes the record
    judge_chain(rules, slots, slot, chain, a, b, [&] {
        return state == nullptr ? enter_hash(rules, slots, slot, chain, a.hash + b.hash)
                                : enter_nearest(rules, slots, slot, states, state, classes);
    });
}

__global__ void __launch_bounds__(kWarp* kWarpsPerBlock) verdicts_kernel(const __grid_constant__ VerdictTask task) {
    const int64_t i = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + warp_index();
    if (i >= task.count) return;
    const int64_t at = i * task.classes;
    const Scored a = score_row<false>(task.original + at, task.classes, task.original_scores, 0, 0, nullptr);
    const Scored b = score_row<false>(task.compressed + at, task.classes, task.compressed_scores, 1, 0, nullptr);
    if (lane_index() == 0) store_verdict(task, i, make_verdict(a, b));
}

size_t bytes_of_states(int32_t classes, int warps) {
    return static_cast<size_t>(warps) * 2 * classes * sizeof(uint16_t);
}

// Shapes the launch so that the states of its warps fit into shared memory: four warps a CTA, one when there are very many classes.
Extent extent_for_states(int32_t classes, int64_t slots) {
    const size_t limit = shared_memory_limit("judge");
    const int warps = bytes_of_states(classes, kWarpsPerBlock) <= limit ? kWarpsPerBlock : 1;
    const size_t shared = bytes_of_states(classes, warps);
    if (shared > limit) {
        throw std::runtime_error("judge: this device has room for " + std::to_string(limit / bytes_of_states(1, 1)) +
                                 " classes with coverage \"nearest\", got " + std::to_string(classes));
    }
    check(cudaFuncSetAttribute(judge_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
          "judge");
    return {blocks_for(slots, warps, "judge"), static_cast<unsigned>(kWarp * warps), shared};
}

}  // namespace

void judge(const Rules& rules, const Slots& slots, const float* original, const float* compressed, int32_t classes,
           void* stream) {
    if (slots.count == 0) return;
    const Extent extent = rules.coverage == Coverage::nearest
                              ? extent_for_states(classes, slots.count)
                              : Extent{blocks_for(slots.count, kWarpsPerBlock, "judge"), kWarp * kWarpsPerBlock};
    launch("judge", judge_kernel, extent, stream, rules, slots, original, compressed, classes);
}

void verdicts(const VerdictTask& task, void* stream) {
    if (task.count == 0) return;
    launch("verdicts", verdicts_kernel, {blocks_for(task.count, kWarpsPerBlock, "verdicts"), kWarp * kWarpsPerBlock},
           stream, task);
}

}  // namespace compdx::cuda
