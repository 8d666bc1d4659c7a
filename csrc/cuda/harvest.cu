// Ended chains leave for the ring in the order of their slots: one CTA numbers them, then many move them.
#include "cuda/launch.h"
#include "cuda/ring.cuh"

namespace compdx::cuda {
namespace {

constexpr int kNumberThreads = 1024;
constexpr int kSlotsEach = 4;  // loads in flight a thread
constexpr int kMoveThreads = 128;

// Writes 1 + place in the ring into `reserved` of the chains that are to move; nobody but move_kernel sees it. Only this kernel touches
// the counter, after all its threads have read it.
__global__ void __launch_bounds__(kNumberThreads) number_kernel(const __grid_constant__ Slots slots) {
    __shared__ int32_t warps[kWarp];
    const int64_t ended = slots.counters->ended;
    const int64_t room = slots.ring_capacity - (ended - slots.counters->consumed);
    int64_t taken = 0;
    for (int64_t base = 0; base < slots.count; base += kNumberThreads * kSlotsEach) {
        const int64_t first = base + kSlotsEach * static_cast<int64_t>(threadIdx.x);
        bool leaves[kSlotsEach];
        int32_t count = 0;
#pragma unroll
        for (int i = 0; i < kSlotsEach; ++i) {
            leaves[i] = first + i < slots.count && slots.chains[first + i].status == Status::ended;
            count += leaves[i];
        }
        const Ordered sum = ordered_sum(count, warps);
        int64_t number = taken + sum.before;
#pragma unroll
        for (int i = 0; i < kSlotsEach; ++i) {
            if (leaves[i] && number < room) {
                slots.chains[first + i].reserved = static_cast<uint32_t>((ended + number) % slots.ring_capacity) + 1;
            }
            number += leaves[i];
        }
        taken += sum.total;
    }
    if (threadIdx.x == 0) slots.counters->ended = ended + (taken < room ? taken : (room > 0 ? room : 0));
}

__device__ __forceinline__ void move_chain(const Rules& rules, const Slots& slots, int64_t slot) {
    Chain& chain = slots.chains[slot];
    move_to_ring<kMoveThreads / kWarp>(rules, slots, slot, chain, static_cast<int64_t>(chain.reserved) - 1);
    if (threadIdx.x == 0) chain = Chain();
}

// A CTA looks after as many slots as a warp has lanes, since few of them have anything to move.
__global__ void __launch_bounds__(kMoveThreads)
    move_kernel(const __grid_constant__ Rules rules, const __grid_constant__ Slots slots) {
    const int64_t first = static_cast<int64_t>(blockIdx.x) * kWarp;
    const int64_t mine = first + lane_index();
    unsigned leaving = __ballot_sync(kAllLanes, mine < slots.count && slots.chains[mine].reserved != 0);
    // Records are reset behind a barrier in move_to_ring, which every warp reaches with this mask in hand.
    for (; leaving != 0; leaving &= leaving - 1) move_chain(rules, slots, first + __ffs(leaving) - 1);
}

}  // namespace

void harvest(const Rules& rules, const Slots& slots, void* stream) {
    if (slots.count == 0) return;
    if (slots.ring_capacity >= std::numeric_limits<uint32_t>::max()) {
        throw std::runtime_error("harvest: expected a ring of less than 2^32 - 1 records, got " +
                                 std::to_string(slots.ring_capacity));
    }
    launch("harvest (number)", number_kernel, {1, kNumberThreads}, stream, slots);
    launch("harvest (move)", move_kernel, {blocks_for(slots.count, kWarp, "harvest"), kMoveThreads}, stream, rules,
           slots);
}

}  // namespace compdx::cuda
