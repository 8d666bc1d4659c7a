// One iteration of a chain by one CTA, from the scores of its last query to its next one: judge, accept, leave for the ring, load the
// next seed, choose, mutate, write the models' input. The record and the images stay in shared memory on the way.
//
// Places of the ring and seeds of the queue go to whoever comes first. That is free to vary: a trajectory depends on its seed and the
// scores alone, not on its slot.
#include "cuda/choose.cuh"
#include "cuda/input.cuh"
#include "cuda/launch.h"
#include "cuda/operators.cuh"
#include "cuda/ring.cuh"
#include "cuda/score.cuh"

namespace compdx::cuda {
namespace {

constexpr int32_t kLargestImage = 16384;  // two of them and a tile are within the 48 kB that every launch may have

// 64 registers a thread, whatever the group: what the record, the draw and the networks of the medians need.
template <int threads>
constexpr int resident = 1024 / threads;

// 512 threads keep the slowest operator short when there are few chains. A warp is enough for a small image when the chains fill the
// device anyway, and waits for no other.
int threads_for(const Shape& shape, int64_t slots) {
    constexpr int64_t few_slots = 256;
    constexpr int64_t many_slots = 4096;
    constexpr int32_t small_image = 1024;
    if (slots <= few_slots) return 512;
    return shape.size() <= small_image && slots >= many_slots ? 32 : 128;
}

COMPDX_HD int32_t room_for(int32_t pixels) { return (pixels + 15) / 16 * 16; }

__device__ __forceinline__ void add_to(int64_t& counter, int64_t value) {
    atomicAdd(reinterpret_cast<unsigned long long*>(&counter), static_cast<unsigned long long>(value));
}

// The counter's next number below the limit, or -1. Every CTA of this kernel asks at most once: while there is enough for all that can
// come, an addition is enough; only near the limit do they have to compare.
__device__ __forceinline__ int64_t take_number(int64_t& counter, int64_t limit) {
    auto* const word = reinterpret_cast<unsigned long long*>(&counter);
    int64_t number = *const_cast<volatile int64_t*>(&counter);
    if (number + gridDim.x <= limit) return static_cast<int64_t>(atomicAdd(word, 1ull));
    while (number < limit) {
        const auto expected = static_cast<unsigned long long>(number);
        const auto found = static_cast<int64_t>(atomicCAS(word, expected, expected + 1));
        if (found == number) return number;
        number = found;
    }
    return -1;
}

__device__ __forceinline__ int64_t place_in_ring(const Slots& slots) {
    const int64_t number = take_number(slots.counters->ended, slots.counters->consumed + slots.ring_capacity);
    return number < 0 ? -1 : number % slots.ring_capacity;
}

__device__ __forceinline__ void load_seed(const Slots& slots, Chain& chain) {
    const int64_t number = take_number(slots.counters->next, slots.queue_length);
    if (number < 0) return;
    const int64_t row = slots.queue[number];
    chain = begin_chain(slots.identities[row], static_cast<int32_t>(row));
}

// Only slots without work, or whose work begins or ends, touch the counters.
__device__ __forceinline__ void count_work(const Slots& slots, bool had_work, bool has_work) {
    Counters& counters = *slots.counters;
    if (blockIdx.x == 0) add_to(counters.queries, slots.count);
    if (!has_work) add_to(counters.queries, -1);
    if (had_work != has_work) add_to(counters.active, has_work ? 1 : -1);
}

// The next query of a working chain in shared memory; it, too, goes into the slot and into the models' input. `images` is room for two.
__device__ __forceinline__ void write_query(const Rules& rules, const Slots& slots, const Input& input, int64_t slot,
                                            Chain& chain, Draw& draw, uint8_t* images) {
    const int32_t pixels = rules.shape.size();
    const uint8_t* seed = slots.seed(chain.row, pixels);
    const bool is_seed = chain.status == Status::fresh;
    copy_bytes(is_seed ? seed : slots.image(chain.current, slot), images, pixels);
    uint8_t* query = images;
    if (!is_seed) {
        query += room_for(pixels);
        const uint8_t* far = slots.image(chain.bisection.far, slot);
        if (warp_index() == 0) draw_by_warp(rules, chain, draw);
        __syncthreads();
        mutate_image(
            {draw, stream_of_next(rules, chain), rules.shape, rules.overflow, rules.linf, images, seed, far, query});
    }
    __syncthreads();
    copy_bytes(query, slots.image(is_seed ? chain.current : mutant_buffer(chain), slot), pixels);
    write_input(query, rules.shape, input, slot);
}

template <int threads>
__global__ void __launch_bounds__(threads, resident<threads>)
    step_kernel(const __grid_constant__ Rules rules, const __grid_constant__ Slots slots,
                const __grid_constant__ Input input, const float* original, const float* compressed, int32_t classes) {
    constexpr int warps = threads / kWarp;
    constexpr int words = sizeof(Chain) / sizeof(uint64_t);
    __shared__ uint64_t record[words];
    __shared__ Scored scored[2];
    __shared__ Draw draw;
    __shared__ int64_t place;
    const int64_t slot = blockIdx.x;
    auto* const home = reinterpret_cast<uint64_t*>(slots.chains + slot);
    Chain& chain = *reinterpret_cast<Chain*>(record);
    if (threadIdx.x < words) record[threadIdx.x] = home[threadIdx.x];
    __syncthreads();

    const bool had_work = is_working(chain.status);
    for (int model = warp_index(); had_work && model < 2; model += warps) {
        const float* scores = (model == 0 ? original : compressed) + slot * classes;
        const Scores kind = model == 0 ? rules.original_scores : rules.compressed_scores;
        const Scored row = score_row<true>(scores, classes, kind, model, rules.grid, nullptr);
        if (lane_index() == 0) scored[model] = row;
    }
    __syncthreads();
    if (warp_index() == 0) {
        if (had_work) {
            judge_chain(rules, slots, slot, chain, scored[0], scored[1],
                        [&] { return enter_hash(rules, slots, slot, chain, scored[0].hash + scored[1].hash); });
        }
        if (lane_index() == 0) place = chain.status == Status::ended ? place_in_ring(slots) : -1;
    }
    __syncthreads();

    if (place >= 0) move_to_ring<warps>(rules, slots, slot, chain, place);
    if (threadIdx.x == 0) {
        if (place >= 0) chain = Chain();
        if (chain.status == Status::idle) load_seed(slots, chain);
        count_work(slots, had_work, is_working(chain.status));
    }
    __syncthreads();

    if (is_working(chain.status)) write_query(rules, slots, input, slot, chain, draw, dynamic_shared());
    if (threadIdx.x < words) home[threadIdx.x] = record[threadIdx.x];
}

template <int threads>
void launch_step(const Rules& rules, const Slots& slots, const Input& input, const float* original,
                 const float* compressed, int32_t classes, void* stream) {
    const Extent extent = {blocks_for(slots.count, 1, "step"), threads,
                           2 * static_cast<size_t>(room_for(rules.shape.size()))};
    launch("step", step_kernel<threads>, extent, stream, rules, slots, input, original, compressed, classes);
}

}  // namespace

void step(const Rules& rules, const Slots& slots, const Input& input, const float* original, const float* compressed,
          int32_t classes, int threads, void* stream) {
    if (slots.count == 0) return;
    if (rules.shape.size() > kLargestImage || rules.coverage != Coverage::hash) {
        judge(rules, slots, original, compressed, classes, stream);
        harvest(rules, slots, stream);
        refill(slots, stream);
        return mutate(rules, slots, input, stream);
    }
    switch (threads == 0 ? threads_for(rules.shape, slots.count) : threads) {
        case 32:
            return launch_step<32>(rules, slots, input, original, compressed, classes, stream);
        case 128:
            return launch_step<128>(rules, slots, input, original, compressed, classes, stream);
        case 512:
            return launch_step<512>(rules, slots, input, original, compressed, classes, stream);
        default:
            throw std::runtime_error("step: expected groups of 32, 128 or 512 threads, got " + std::to_string(threads));
    }
}

}  // namespace compdx::cuda
