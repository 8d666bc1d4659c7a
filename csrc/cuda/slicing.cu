// The contributions of a weighted operation, one CTA for an output channel of a sample, which goes from position to position. A thread
// always has the same taps, so the counts of the weights need no atomics until they leave the CTA.
#include "core/slices.h"
#include "cuda/common.cuh"
#include "cuda/launch.h"

namespace compdx::cuda {
namespace {

constexpr int kMostThreads = 256;
constexpr int kMostWarps = kMostThreads / kWarp;
constexpr int kDigitBits = 11;
constexpr int kDigits = 1 << kDigitBits;
constexpr int kFirstShift = 36;  // the first digit of a key: a magnitude to an eighth of an octave
constexpr uint64_t kAfterAll = uint64_t{1} << 47;

// The shared memory of a CTA whose size does not depend on the number of taps.
struct Workspace {
    uint64_t keys[kMostThreads];    // a batch of the products
    uint64_t sorted[kMostThreads];  // the same in order
    int64_t sums[kWarp];
    int32_t counts[kWarp];
    uint32_t largest[kMostWarps];
    uint32_t smallest[kMostWarps];
    int32_t taps[kMostWarps];
    int32_t first_near[kMostWarps];
    int32_t overflow_digit;
    int32_t before_overflow;
    int32_t gathered;
};

// What depends on it; of one output channel.
struct Memory {
    Workspace* work;
    int32_t* histogram;  // [kDigits], when the taps are more than one batch
    float* products;     // [taps]
    int32_t* counts;     // [taps], contributions to the weights, when anybody wants them
};

struct Neuron {
    const float* delta;   // of the sample
    const float* weight;  // of the output channel
    Window window;
    int32_t taps;
    int32_t sign;
};

// Of the taps that are not padding.
struct Range {
    uint32_t largest;
    uint32_t smallest;
    int32_t taps;
};

__device__ __forceinline__ int warps_of_block() { return static_cast<int>(blockDim.x) / kWarp; }

// Padding has products of 0, which change no sum and are never kept. The same answer in all threads.
__device__ __forceinline__ Range multiply(const SliceTask& task, const Neuron& neuron, const Memory& memory) {
    Range range = {0, 0xffffffffu, 0};
    for (int32_t tap = threadIdx.x; tap < neuron.taps; tap += blockDim.x) {
        const int32_t place = input_of(task, neuron.window, tap);
        float product = 0.0f;
        if (place >= 0) {
            product = product_of(neuron.weight[tap], neuron.delta[place]);
            const uint32_t magnitude = magnitude_of(product);
            range.largest = magnitude > range.largest ? magnitude : range.largest;
            range.smallest = magnitude < range.smallest ? magnitude : range.smallest;
            range.taps += 1;
        }
        memory.products[tap] = product;
    }
    Workspace& work = *memory.work;
    const Range warp = {warp_max(range.largest), ~warp_max(~range.smallest), warp_sum(range.taps)};
    if (lane_index() == 0) {
        work.largest[warp_index()] = warp.largest;
        work.smallest[warp_index()] = warp.smallest;
        work.taps[warp_index()] = warp.taps;
    }
    __syncthreads();
    range = {0, 0xffffffffu, 0};
    for (int w = 0; w < warps_of_block(); ++w) {
        range.largest = work.largest[w] > range.largest ? work.largest[w] : range.largest;
        range.smallest = work.smallest[w] < range.smallest ? work.smallest[w] : range.smallest;
        range.taps += work.taps[w];
    }
    return range;
}

__device__ __forceinline__ int64_t sum_scaled(const Neuron& neuron, const Memory& memory, double scale) {
    int64_t sum = 0;
    for (int32_t tap = threadIdx.x; tap < neuron.taps; tap += blockDim.x) sum += scaled(memory.products[tap], scale);
    return ordered_sum(sum, memory.work->sums).total;
}

// Where a batch that begins with key `begin` ends: it has at least one key and no more than there are threads. Where too many share a
// digit, the next digit tells them apart; the last one leaves eight keys at most.
__device__ __forceinline__ uint64_t end_of_batch(const Neuron& neuron, const Memory& memory, uint64_t begin) {
    if (neuron.taps <= static_cast<int32_t>(blockDim.x)) return kAfterAll;
    Workspace& work = *memory.work;
    const int32_t room = static_cast<int32_t>(blockDim.x);
    uint64_t base = 0;
    for (int shift = kFirstShift;; shift -= kDigitBits) {
        for (int32_t digit = threadIdx.x; digit < kDigits; digit += blockDim.x) memory.histogram[digit] = 0;
        if (threadIdx.x == 0) work.overflow_digit = kDigits;
        __syncthreads();
        for (int32_t tap = threadIdx.x; tap < neuron.taps; tap += blockDim.x) {
            const uint64_t key = key_of(magnitude_of(memory.products[tap]), static_cast<uint32_t>(tap));
            const bool is_below = key >> (shift + kDigitBits) == base >> (shift + kDigitBits);
            if (key >= begin && is_below) atomicAdd(&memory.histogram[(key >> shift) % kDigits], 1);
        }
        __syncthreads();
        constexpr int each = kDigits / kMostThreads;  // more than one batch of taps means all threads
        const int32_t first = each * static_cast<int32_t>(threadIdx.x);
        int32_t here = 0;
        for (int i = 0; i < each; ++i) here += memory.histogram[first + i];
        int32_t before = ordered_sum(here, work.counts).before;
        for (int i = 0; i < each; ++i) {
            const int32_t after = before + memory.histogram[first + i];
            if (before <= room && after > room) {
                work.overflow_digit = first + i;
                work.before_overflow = before;
            }
            before = after;
        }
        __syncthreads();
        const uint64_t digit = static_cast<uint64_t>(work.overflow_digit);
        const bool is_done = digit == kDigits || work.before_overflow > 0;
        __syncthreads();  // the next round writes where this one has read
        base += digit << shift;
        if (is_done) return base;
    }
}

// The keys from `begin` to `end`, in order; returns their number.
__device__ __forceinline__ int32_t sort_batch(const Neuron& neuron, const Memory& memory, uint64_t begin,
                                              uint64_t end) {
    Workspace& work = *memory.work;
    if (threadIdx.x == 0) work.gathered = 0;
    __syncthreads();
    for (int32_t tap = threadIdx.x; tap < neuron.taps; tap += blockDim.x) {
        const uint64_t key = key_of(magnitude_of(memory.products[tap]), static_cast<uint32_t>(tap));
        if (key >= begin && key < end) work.keys[atomicAdd(&work.gathered, 1)] = key;
    }
    __syncthreads();
    const int32_t count = work.gathered;
    if (static_cast<int32_t>(threadIdx.x) < count) {
        const uint64_t mine = work.keys[threadIdx.x];
        int32_t place = 0;
        for (int32_t i = 0; i < count; ++i) place += work.keys[i] < mine;
        work.sorted[place] = mine;
    }
    __syncthreads();
    return count;
}

// The first thread for which it holds, or the number of threads.
__device__ __forceinline__ int32_t first_thread(bool holds, int32_t* warps) {
    const unsigned lanes = __ballot_sync(kAllLanes, holds);
    if (lane_index() == 0) {
        warps[warp_index()] = lanes != 0 ? warp_index() * kWarp + __ffs(lanes) - 1 : static_cast<int32_t>(blockDim.x);
    }
    __syncthreads();
    int32_t first = static_cast<int32_t>(blockDim.x);
    for (int w = 0; w < warps_of_block(); ++w) first = min(first, warps[w]);
    return first;
}

// The magnitude above which products are kept; the same in all threads.
__device__ __forceinline__ uint32_t select_bound(const SliceTask& task, const Neuron& neuron, const Memory& memory,
                                                 const Range& range) {
    const double scale = scale_of(range.largest);
    const int64_t total = sum_scaled(neuron, memory, scale);
    const int64_t smallest = scaled(float_of_bits(range.smallest), scale);
    if (is_cancelled(total, scaled(float_of_bits(range.largest), scale)) || absolute_of(total) < smallest) {
        return kKeepNothing;
    }
    int64_t sum = 0;
    // Most sums are near their total after few products, so only as many are put in order as it takes.
    for (uint64_t begin = 0;;) {
        const uint64_t end = end_of_batch(neuron, memory, begin);
        const int32_t count = sort_batch(neuron, memory, begin, end);
        const bool has_one = static_cast<int32_t>(threadIdx.x) < count;
        const int64_t own =
            has_one ? scaled(memory.products[tap_of(memory.work->sorted[threadIdx.x])], scale) : int64_t{0};
        const Ordered<int64_t> sums = ordered_sum(own, memory.work->sums);
        const bool is_reached = has_one && is_near(sum + sums.before + own, total, task.epsilon);
        const int32_t first = first_thread(is_reached, memory.work->first_near);
        if (first < count) {
            return bound_of(magnitude_of(memory.products[tap_of(memory.work->sorted[first])]), task.share);
        }
        sum += sums.total;
        begin = end;
    }
}

__device__ __forceinline__ void add(const SliceTask& task, const Neuron& neuron, const Memory& memory, int32_t* inputs,
                                    int32_t tap, int32_t contribution) {
    if (contribution == 0) return;
    if (memory.counts != nullptr) memory.counts[tap] += contribution;
    if (inputs != nullptr) atomicAdd(inputs + input_of(task, neuron.window, tap), contribution);
}

__device__ __forceinline__ void take(const SliceTask& task, const Neuron& neuron, const Memory& memory,
                                     int32_t* inputs) {
    const Range range = multiply(task, neuron, memory);
    if (range.taps == 1) {
        for (int32_t tap = threadIdx.x; tap < neuron.taps; tap += blockDim.x) {
            const int32_t place = input_of(task, neuron.window, tap);
            if (place < 0) continue;
            const int32_t sign = neuron.sign * sign_of(neuron.weight[tap]) * sign_of(neuron.delta[place]);
            add(task, neuron, memory, inputs, tap, sign);
        }
    } else if (range.largest != 0) {
        const uint32_t bound = select_bound(task, neuron, memory, range);
        if (bound != kKeepNothing) {
            for (int32_t tap = threadIdx.x; tap < neuron.taps; tap += blockDim.x) {
                const int32_t contribution = contribution_of(memory.products[tap], bound, neuron.sign);
                add(task, neuron, memory, inputs, tap, contribution);
            }
        }
    }
    __syncthreads();  // the next neuron writes where this one has read
}

__device__ __forceinline__ void give_weights(const SliceTask& task, const Memory& memory, int64_t sample,
                                             int32_t output, int32_t taps) {
    if (memory.counts == nullptr) return;
    const int64_t at = static_cast<int64_t>(output) * taps;
    for (int32_t tap = threadIdx.x; tap < taps; tap += blockDim.x) {
        const int32_t value = memory.counts[tap];
        if (value == 0) continue;
        if (task.signed_sum != nullptr) atomicAdd(task.signed_sum + at + tap, value);
        if (task.absolute != nullptr) atomicAdd(task.absolute + at + tap, value < 0 ? -value : value);
        // Nobody else has this weight of this sample.
        if (task.per_sample != nullptr) task.per_sample[sample * task.outputs * taps + at + tap] += value;
    }
}

__global__ void __launch_bounds__(kMostThreads) contributions_kernel(const __grid_constant__ SliceTask task) {
    __shared__ Workspace work;
    const int64_t sample = blockIdx.x / static_cast<unsigned>(task.outputs);
    const int32_t output = static_cast<int32_t>(blockIdx.x % static_cast<unsigned>(task.outputs));
    const int32_t group = output / group_outputs(task);
    const int32_t taps = taps_of(task);
    const int32_t positions = positions_of(task);

    int32_t* dynamic = reinterpret_cast<int32_t*>(dynamic_shared());
    Memory memory = {&work, dynamic, nullptr, nullptr};
    if (taps > static_cast<int32_t>(blockDim.x)) dynamic += kDigits;
    memory.products = reinterpret_cast<float*>(dynamic);
    if (wants_weights(task)) {
        memory.counts = dynamic + taps;
        for (int32_t tap = threadIdx.x; tap < taps; tap += blockDim.x) memory.counts[tap] = 0;
    }

    const int64_t input = sample * input_size(task);
    int32_t* inputs = task.inputs != nullptr ? task.inputs + input : nullptr;
    const float* weight = task.weight + static_cast<int64_t>(output) * taps;
    const int8_t* signs = task.sign + static_cast<int64_t>(blockIdx.x) * positions;
    for (int32_t position = 0; position < positions; ++position) {
        const int32_t sign = signs[position];
        if (sign == 0) continue;
        const Neuron neuron = {task.delta + input, weight, window_of(task, group, position), taps, sign};
        take(task, neuron, memory, inputs);
    }
    give_weights(task, memory, sample, output, taps);
}

unsigned threads_for(int32_t taps) {
    unsigned threads = kWarp;
    while (threads < kMostThreads && static_cast<int32_t>(threads) < taps) threads *= 2;
    return threads;
}

}  // namespace

void contributions(const SliceTask& task, void* stream) {
    const int32_t taps = taps_of(task);
    const bool has_counts = wants_weights(task);
    if (task.samples == 0 || (task.inputs == nullptr && !has_counts)) return;
    const size_t each = has_counts ? sizeof(float) + sizeof(int32_t) : sizeof(float);
    const size_t fixed = taps > kMostThreads ? kDigits * sizeof(int32_t) : 0;
    const size_t shared = fixed + static_cast<size_t>(taps) * each;
    const size_t limit = shared_memory_limit("contributions") - sizeof(Workspace);
    if (shared > limit) {
        throw std::runtime_error("contributions: the shared memory of this device has room for " +
                                 std::to_string((limit - fixed) / each) + " weights an output channel, got " +
                                 std::to_string(taps));
    }
    check(cudaFuncSetAttribute(contributions_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared)),
          "contributions");
    launch("contributions", contributions_kernel,
           {blocks_for(task.samples * task.outputs, 1, "contributions"), threads_for(taps), shared}, stream, task);
}

}  // namespace compdx::cuda
