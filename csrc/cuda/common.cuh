// What the kernels share: launching, vectors of memory, sums over a warp and over a CTA. CTAs are one-dimensional and whole warps.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>

#include "core/platform.h"

namespace compdx::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }

// ---- launching --------------------------------------------------------------------------------------------------------------------

inline void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // an error that is not sticky must not be found again by whoever calls next
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// CTAs for `count` pieces of work, `each` in one.
inline unsigned blocks_for(int64_t count, int64_t each, const char* what) {
    const int64_t blocks = (count + each - 1) / each;
    if (blocks > std::numeric_limits<int32_t>::max()) {
        throw std::runtime_error(std::string(what) + ": too much work for one launch (" + std::to_string(count) + ")");
    }
    return static_cast<unsigned>(blocks);
}

struct Extent {
    unsigned blocks;
    unsigned threads;
    size_t shared = 0;  // bytes of dynamic shared memory
};

template <class... Parameters>
void launch(const char* name, void (*kernel)(Parameters...), const Extent& extent, void* stream,
            const std::common_type_t<Parameters>&... arguments) {
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(extent.blocks);
    config.blockDim = dim3(extent.threads);
    config.dynamicSmemBytes = extent.shared;
    config.stream = static_cast<cudaStream_t>(stream);
    check(cudaLaunchKernelEx(&config, kernel, arguments...), name);
}

// Bytes of shared memory that a CTA may have when its kernel asks for it.
inline size_t shared_memory_limit(const char* what) {
    int device = 0;
    int limit = 0;
    check(cudaGetDevice(&device), what);
    check(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), what);
    return static_cast<size_t>(limit);
}

// ---- memory -----------------------------------------------------------------------------------------------------------------------

// Values that are loaded and stored in one go. Indices into it are constants after unrolling, so it lives in registers.
template <class T, int count>
struct alignas(sizeof(T) * count) Pack {
    T v[count];
};

template <class T, int count>
__device__ __forceinline__ bool is_whole(const T* address, int64_t left) {
    return left >= count && reinterpret_cast<uintptr_t>(address) % sizeof(Pack<T, count>) == 0;
}

// The next values, `left` of them until the end of the array (zeros beyond it).
template <int count, class T>
__device__ __forceinline__ Pack<T, count> load_pack(const T* from, int64_t left) {
    if (is_whole<T, count>(from, left)) return *reinterpret_cast<const Pack<T, count>*>(from);
    Pack<T, count> pack = {};
#pragma unroll
    for (int i = 0; i < count; ++i) {
        if (i < left) pack.v[i] = from[i];
    }
    return pack;
}

template <int count, class T>
__device__ __forceinline__ void store_pack(T* to, int64_t left, const Pack<T, count>& pack) {
    if (is_whole<T, count>(to, left)) {
        *reinterpret_cast<Pack<T, count>*>(to) = pack;
        return;
    }
#pragma unroll
    for (int i = 0; i < count; ++i) {
        if (i < left) to[i] = pack.v[i];
    }
}

// The shared memory that the launch asked for.
__device__ __forceinline__ uint8_t* dynamic_shared() {
    extern __shared__ __align__(16) uint8_t dynamic_memory[];
    return dynamic_memory;
}

// By all threads of the CTA.
__device__ __forceinline__ void copy_bytes(const uint8_t* from, uint8_t* to, int64_t count) {
    constexpr int each = 16;
    for (int64_t i = each * static_cast<int64_t>(threadIdx.x); i < count;
         i += each * static_cast<int64_t>(blockDim.x)) {
        store_pack(to + i, count - i, load_pack<each>(from + i, count - i));
    }
}

// ---- sums ---------------------------------------------------------------------------------------------------------------------------

// Integers only: the result must not depend on the order.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
    return value;
}

template <class T>
__device__ __forceinline__ T warp_max(T value) {
#pragma unroll
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        const T other = __shfl_xor_sync(kAllLanes, value, distance);
        value = other > value ? other : value;
    }
    return value;
}

// How far a picture is from its seed, in grey levels.
struct Change {
    int64_t squares;
    int32_t largest;
};

__device__ __forceinline__ void add_pixel(Change& change, uint8_t pixel, uint8_t origin) {
    const int32_t d = static_cast<int32_t>(pixel) - origin;
    change.squares += d * d;
    change.largest = max(change.largest, abs(d));
}

// Over a CTA of at most so many warps; thread 0 gets the answer.
template <int most_warps>
__device__ __forceinline__ Change block_change(Change change) {
    __shared__ int64_t squares[most_warps];
    __shared__ int32_t largest[most_warps];
    change = {warp_sum(change.squares), warp_max(change.largest)};
    if (lane_index() == 0) {
        squares[warp_index()] = change.squares;
        largest[warp_index()] = change.largest;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < static_cast<int>(blockDim.x) / kWarp; ++w) {
            change.squares += squares[w];
            change.largest = max(change.largest, largest[w]);
        }
    }
    return change;
}

template <class T>
struct Ordered {
    T before;  // sum over the threads before this one
    T total;   // sum over the CTA
};

// Prefix sum over the CTA. `warps` is shared memory for one number a warp.
template <class T>
__device__ __forceinline__ Ordered<T> ordered_sum(T value, T* warps) {
    T inclusive = value;
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
        const T other = __shfl_up_sync(kAllLanes, inclusive, distance);
        inclusive += lane_index() >= distance ? other : 0;
    }
    if (lane_index() == kWarp - 1) warps[warp_index()] = inclusive;
    __syncthreads();
    const T sum = lane_index() < static_cast<int>(blockDim.x) / kWarp ? warps[lane_index()] : T(0);
    const T earlier = warp_sum(lane_index() < warp_index() ? sum : T(0));
    const T total = warp_sum(sum);
    __syncthreads();  // the next call writes where this one has read
    return {earlier + inclusive - value, total};
}

}  // namespace compdx::cuda
