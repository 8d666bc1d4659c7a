// The verdict on every query, one warp each.
#include <cfloat>

#include "core/coverage.h"
#include "core/softmax.h"
#include "cuda/common.cuh"
#include "cuda/launch.h"

namespace compdx::cuda {
namespace {

constexpr int kWarpsPerBlock = 4;

struct Scored {
    bool finite;
    int32_t label;
    uint32_t confidence;  // Q30
    uint32_t margin;      // Q30
    uint64_t hash;        // this model's share of the state's
};

struct Best {
    float score;
    int32_t index;
};

__device__ __forceinline__ bool is_better(const Best& a, const Best& b) {
    return a.score > b.score || (a.score == b.score && a.index < b.index);
}

// Largest score, lowest index on ties, the same in all lanes.
__device__ __forceinline__ Best warp_best(Best best) {
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        const Best other = {__shfl_xor_sync(kAllLanes, best.score, distance),
                            __shfl_xor_sync(kAllLanes, best.index, distance)};
        if (is_better(other, best)) best = other;
    }
    return best;
}

// Hash of all probabilities, which are also stored when a state is wanted.
template <class Probability>
__device__ __forceinline__ uint64_t take_state(int32_t classes, int model, uint32_t grid, uint16_t* state,
                                               const Probability& probability) {
    uint64_t hash = 0;
    for (int32_t k = lane_index(); k < classes; k += kWarp) {
        const uint32_t q15 = probability(k);
        if (state != nullptr) {
            state[k] = static_cast<uint16_t>(q15);
        } else {
            hash += state_term(model, k, q15, grid);
        }
    }
    return warp_sum(hash);
}

// One row of scores by one warp; all lanes know the result. `state`: [classes] or null, of no use without a state.
template <bool with_state>
__device__ __forceinline__ Scored score_row(const float* scores, int32_t classes, Scores kind, int model, uint32_t grid,
                                            uint16_t* state) {
    bool finite = true;
    Best best = {-FLT_MAX, classes};  // loses against every class
    for (int32_t k = lane_index(); k < classes; k += kWarp) {
        const Best candidate = {scores[k], k};
        finite = finite && is_finite(candidate.score);
        if (is_better(candidate, best)) best = candidate;
    }
    if (!__all_sync(kAllLanes, finite)) return {false, -1, 0, 0, 0};
    best = warp_best(best);
    Best second = {-FLT_MAX, classes};
    for (int32_t k = lane_index(); k < classes; k += kWarp) {
        const Best candidate = {scores[k], k};
        if (k != best.index && is_better(candidate, second)) second = candidate;
    }
    second = warp_best(second);
    if (kind == Scores::probabilities) {
        uint64_t hash = 0;
        if (with_state) {
            hash = take_state(classes, model, grid, state,
                              [=](int32_t k) { return probability_q15(probability_q30(scores[k])); });
        }
        const uint32_t confidence = probability_q30(best.score);
        return {true, best.index, confidence, confidence - probability_q30(second.score), hash};
    }
    // The exponentials are computed twice rather than stored: there is no bound on the number of classes.
    uint64_t sum = 0;
    for (int32_t k = lane_index(); k < classes; k += kWarp) sum += exp_q24(best.score, scores[k]);
    sum = warp_sum(sum);
    uint64_t hash = 0;
    if (with_state) {
        const uint64_t reciprocal = softmax_reciprocal(sum);
        hash = take_state(classes, model, grid, state,
                          [=](int32_t k) { return softmax_q15(exp_q24(best.score, scores[k]), reciprocal); });
    }
    const uint32_t margin = softmax_margin_q30(exp_q24(best.score, second.score), sum);
    return {true, best.index, softmax_top_q30(sum), margin, hash};
}

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

// The chain's table is probed by lane 0 alone: a state that was seen before is found at the first place as a rule.
__device__ __forceinline__ bool enter_hash(const Rules& rules, const Slots& slots, int64_t slot, uint32_t states,
                                           uint64_t hash) {
    bool novel = false;
    if (lane_index() == 0) {
        uint32_t* table = static_cast<uint32_t*>(slots.coverage) + slot * rules.capacity;
        novel = enter_tag(table, rules.capacity, states, state_tag(hash));
    }
    return __shfl_sync(kAllLanes, static_cast<int>(novel), 0) != 0;
}

__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    judge_kernel(const __grid_constant__ Rules rules, const __grid_constant__ Slots slots, const float* original,
                 const float* compressed, int32_t classes) {
    const int64_t slot = static_cast<int64_t>(blockIdx.x) * (blockDim.x / kWarp) + warp_index();
    if (slot >= slots.count) return;
    Chain& chain = slots.chains[slot];
    const Status status = chain.status;
    if (status != Status::fresh && status != Status::active) return;
    uint16_t* state = nullptr;  // of both models, for nearest only
    if (rules.coverage == Coverage::nearest) {
        state = reinterpret_cast<uint16_t*>(dynamic_shared()) + warp_index() * 2 * classes;
    }
    uint16_t* state_of_compressed = state == nullptr ? nullptr : state + classes;
    const Scored a = score_row<true>(original + slot * classes, classes, rules.original_scores, 0, rules.grid, state);
    const Scored b = score_row<true>(compressed + slot * classes, classes, rules.compressed_scores, 1, rules.grid,
                                     state_of_compressed);
    const uint32_t states = chain.states;
    uint8_t trace = chain.pending;
    __syncwarp();  // from here on lane 0 changes the record, and all read the state
    const Verdict verdict = make_verdict(a, b);
    bool goes_on = false;
    if (lane_index() == 0) goes_on = record_verdict(chain, verdict);
    goes_on = __shfl_sync(kAllLanes, static_cast<int>(goes_on), 0) != 0;
    if (goes_on) {
        const bool novel = state == nullptr ? enter_hash(rules, slots, slot, states, a.hash + b.hash)
                                            : enter_nearest(rules, slots, slot, states, state, classes);
        if (lane_index() == 0) trace = settle(rules, chain, verdict, novel);
    }
    if (lane_index() == 0 && status == Status::active) slots.traces[slot * rules.budget + chain.step - 1] = trace;
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

size_t shared_memory_limit() {
    int device = 0;
    int limit = 0;
    check(cudaGetDevice(&device), "judge");
    check(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "judge");
    return static_cast<size_t>(limit);
}

// Shapes the launch so that the states of its warps fit into shared memory: four warps a CTA, one when there are very many classes.
Extent extent_for_states(int32_t classes, int64_t slots) {
    const size_t limit = shared_memory_limit();
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
