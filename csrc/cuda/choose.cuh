// What the next mutant of a chain is to be.
#pragma once

#include "core/operators.h"
#include "core/select.h"
#include "cuda/common.cuh"

namespace compdx::cuda {

// One lane ranks one operator, by one whole warp.
__device__ __forceinline__ Operator choose_operator_by_warp(const Rules& rules, const Chain& chain,
                                                            const Stream& stream) {
    const Words words = stream_words(stream, Purpose::choose, 0);
    const uint32_t places = permuted_places(words.w[1]);
    const int rank = lane_index() < kOperators ? operator_rank(chain, places, lane_index()) : kOperators;
    const int current = __shfl_sync(kAllLanes, rank, chain.last_operator);
    const int wanted = drawn_rank(rules.selection, chain.last_operator != kNoOperator, current, words.w[0]);
    return static_cast<Operator>(__ffs(__ballot_sync(kAllLanes, rank == wanted)) - 1);
}

// By one whole warp, whose first lane writes the draw and notes its operator in the chain.
__device__ __forceinline__ void draw_by_warp(const Rules& rules, Chain& chain, Draw& draw) {
    const Stream stream = stream_of_next(rules, chain);
    const Operator op = bisects(chain) ? kBlend : choose_operator_by_warp(rules, chain, stream);
    if (lane_index() != 0) return;
    draw = draw_next(rules, chain, op, stream);
    chain.pending = op;
}

}  // namespace compdx::cuda
