// How an ended chain leaves for the ring.
#pragma once

#include "core/slots.h"
#include "cuda/common.cuh"

namespace compdx::cuda {

// Copies the image and measures how far it is from its seed; thread 0 gets the answer.
template <int most_warps>
__device__ __forceinline__ Change move_image(const uint8_t* image, const uint8_t* seed, int32_t pixels, uint8_t* to) {
    constexpr int each = 8;
    Change change = {0, 0};
    for (int32_t i = each * threadIdx.x; i < pixels; i += each * blockDim.x) {
        const Pack<uint8_t, each> values = load_pack<each>(image + i, pixels - i);
        const Pack<uint8_t, each> origin = load_pack<each>(seed + i, pixels - i);
#pragma unroll
        for (int j = 0; j < each; ++j) add_pixel(change, values.v[j], origin.v[j]);
        store_pack(to + i, pixels - i, values);
    }
    return block_change<most_warps>(change);
}

// Copies the chain's record, image and trace to a place of the ring. By all threads of a CTA of at most so many warps, none of which
// reads the record afterwards.
template <int most_warps>
__device__ __forceinline__ void move_to_ring(const Rules& rules, const Slots& slots, int64_t slot, const Chain& chain,
                                             int64_t place) {
    const int32_t pixels = rules.shape.size();
    const int64_t budget = rules.budget;
    Change change = {0, 0};
    if (chain.kind != Kind::exhausted) {
        change = move_image<most_warps>(slots.image(chain.current, slot), slots.seed(chain.row, pixels), pixels,
                                        slots.ring_images + place * pixels);
    }
    copy_bytes(slots.traces + slot * budget, slots.ring_traces + place * budget, chain.step);
    __syncthreads();  // all have read the record
    if (threadIdx.x != 0) return;
    Chain record = chain;
    record.reserved = 0;
    record.l2_squared = change.squares;
    record.linf = static_cast<uint8_t>(change.largest);
    slots.ring_chains[place] = record;
}

}  // namespace compdx::cuda
