// What one warp makes of scores, and the output states that a chain has seen.
#pragma once

#include <cfloat>

#include "core/coverage.h"
#include "core/slots.h"
#include "core/softmax.h"
#include "cuda/common.cuh"

namespace compdx::cuda {

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
            hash += state_term(model, k, state_cell(q15, grid));
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
        const uint32_t reciprocal = softmax_reciprocal(sum);
        hash = take_state(classes, model, grid, state,
                          [=](int32_t k) { return softmax_q15(exp_q24(best.score, scores[k]), reciprocal); });
    }
    const uint32_t margin = softmax_margin_q30(exp_q24(best.score, second.score), sum);
    return {true, best.index, softmax_top_q30(sum), margin, hash};
}

// Enters the state into the chain's table, which its first state finds empty. Probed by lane 0 alone: a state that was seen before is
// found at the first place as a rule.
__device__ __forceinline__ bool enter_hash(const Rules& rules, const Slots& slots, int64_t slot, const Chain& chain,
                                           uint64_t hash) {
    uint32_t* table = static_cast<uint32_t*>(slots.coverage) + slot * table_words(rules.capacity);
    if (chain.status == Status::fresh) {
        for (int64_t i = lane_index(); i < taken_words(rules.capacity); i += kWarp) table[rules.capacity + i] = 0;
        __syncwarp();
    }
    bool novel = false;
    if (lane_index() == 0) novel = enter_tag(table, rules.capacity, chain.states, state_tag(hash));
    return __shfl_sync(kAllLanes, static_cast<int>(novel), 0) != 0;
}

// What the scores of its query mean for a chain, by one whole warp. enter() enters the state into the coverage and tells whether it was
// new.
template <class Enter>
__device__ __forceinline__ void judge_chain(const Rules& rules, const Slots& slots, int64_t slot, Chain& chain,
                                            const Scored& original, const Scored& compressed, const Enter& enter) {
    const bool is_mutant = chain.status == Status::active;
    const Verdict verdict = make_verdict(original, compressed);
    uint8_t trace = plain_trace(chain);
    __syncwarp();  // from here on lane 0 changes the record
    bool goes_on = false;
    if (lane_index() == 0) goes_on = record_verdict(chain, verdict);
    goes_on = __shfl_sync(kAllLanes, static_cast<int>(goes_on), 0) != 0;
    if (goes_on) {
        const bool novel = enter();
        if (lane_index() == 0) trace = settle(rules, chain, verdict, novel);
    }
    if (lane_index() == 0 && is_mutant) slots.traces[slot * rules.budget + chain.step - 1] = trace;
}

}  // namespace compdx::cuda
