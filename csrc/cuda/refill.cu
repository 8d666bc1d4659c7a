// Idle slots get the next seeds of the queue, in the order of the slots, from one CTA.
#include "cuda/common.cuh"
#include "cuda/launch.h"

namespace compdx::cuda {
namespace {

constexpr int kLoadThreads = 1024;
constexpr int kSlotsEach = 4;  // loads in flight a thread

// Only this kernel touches the counters, after all its threads have read them.
__global__ void __launch_bounds__(kLoadThreads) load_kernel(const __grid_constant__ Slots slots) {
    __shared__ int32_t warps[kWarp];
    const Counters start = *slots.counters;
    const int64_t queued = slots.queue_length - start.next;
    int64_t idle = 0;
    int64_t working = 0;
    for (int64_t base = 0; base < slots.count; base += kLoadThreads * kSlotsEach) {
        const int64_t first = base + kSlotsEach * static_cast<int64_t>(threadIdx.x);
        bool is_idle[kSlotsEach];
        int32_t idle_here = 0;
        int32_t working_here = 0;
#pragma unroll
        for (int i = 0; i < kSlotsEach; ++i) {
            is_idle[i] = false;
            if (first + i >= slots.count) continue;
            const Status status = slots.chains[first + i].status;
            is_idle[i] = status == Status::idle;
            idle_here += is_idle[i];
            working_here += is_working(status);
        }
        const Ordered sum = ordered_sum(idle_here, warps);
        int64_t number = idle + sum.before;
#pragma unroll
        for (int i = 0; i < kSlotsEach; ++i) {
            if (is_idle[i] && number < queued) {
                const int64_t row = slots.queue[start.next + number];
                slots.chains[first + i] = begin_chain(slots.identities[row], static_cast<int32_t>(row));
            }
            number += is_idle[i];
        }
        idle += sum.total;
        working += ordered_sum(working_here, warps).total;
    }
    if (threadIdx.x != 0) return;
    const int64_t loaded = idle < queued ? idle : (queued > 0 ? queued : 0);
    slots.counters->next = start.next + loaded;
    slots.counters->active = working + loaded;
    slots.counters->queries = start.queries + working + loaded;
}

}  // namespace

void refill(const Slots& slots, void* stream) {
    if (slots.count == 0) return;
    launch("refill", load_kernel, {1, kLoadThreads}, stream, slots);
}

}  // namespace compdx::cuda
