// The part of CUDA that compdx's kernels use, for a host compiler: csrc/cuda/*.cu become ordinary C++ and run on the CPU, so that their
// logic can be compared with the CPU back end where there is no GPU. Found instead of NVIDIA's header by the order of include paths.
//
// Each thread of a CTA is a fibre. CTAs run one after the other on the calling thread, in the order of the threads. What the hardware leaves undefined is an error
// here: threads that leave before a barrier that others wait at, lanes missing from a warp operation. Which thread runs first is the
// tester's choice (emulator::set_order), so that a missing barrier shows as a difference.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <type_traits>

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
extern dim3 gridDim, blockDim, blockIdx, threadIdx;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
// A thread_local variable in a function is static, and `extern thread_local` refers to the one that the emulator owns: what `__shared__`
// and `extern __shared__` mean, since all fibres of a CTA live on one thread.
#define __shared__ thread_local
#define __align__(bytes)  // the emulator's memory is aligned for everything

namespace emulator {

// The first two let a warp run as far ahead of the others as it can; the third mixes all threads.
enum class Order { ascending, descending, shuffled };
void set_order(Order order);

// Waits for all threads of the CTA.
void block_barrier();
// Deposits a value, waits for all lanes of the warp, returns the deposits.
const uint64_t* exchange(unsigned mask, uint64_t value);
int lane();
void run(unsigned blocks, unsigned threads, size_t shared, const std::function<void()>& body);

template <class T>
uint64_t to_bits(T value) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
}

template <class T>
T from_bits(uint64_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace emulator

inline void __syncthreads() { emulator::block_barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulator::exchange(mask, 0); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
    return emulator::from_bits<T>(emulator::exchange(mask, emulator::to_bits(value))[source & 31]);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
    return emulator::from_bits<T>(emulator::exchange(mask, emulator::to_bits(value))[emulator::lane() ^ distance]);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, int distance) {
    const int source = emulator::lane() < distance ? emulator::lane() : emulator::lane() - distance;
    return emulator::from_bits<T>(emulator::exchange(mask, emulator::to_bits(value))[source]);
}

inline unsigned __ballot_sync(unsigned mask, bool predicate) {
    const uint64_t* deposits = emulator::exchange(mask, predicate);
    unsigned ballot = 0;
    for (int i = 0; i < 32; ++i) ballot |= static_cast<unsigned>(deposits[i] != 0) << i;
    return ballot;
}

inline int __all_sync(unsigned mask, bool predicate) { return __ballot_sync(mask, predicate) == 0xffffffffu; }
inline int __ffs(unsigned value) { return __builtin_ffs(static_cast<int>(value)); }

inline unsigned __vminu2(unsigned a, unsigned b) {
    const unsigned low = (a & 0xffff) < (b & 0xffff) ? a & 0xffff : b & 0xffff;
    return low | (a >> 16 < b >> 16 ? a >> 16 : b >> 16) << 16;
}

inline unsigned __vmaxu2(unsigned a, unsigned b) {
    const unsigned low = (a & 0xffff) > (b & 0xffff) ? a & 0xffff : b & 0xffff;
    return low | (a >> 16 > b >> 16 ? a >> 16 : b >> 16) << 16;
}

// Fibres change only where they wait, so nothing comes between.
inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
    const unsigned long long old = *address;
    *address = old + value;
    return old;
}

inline int atomicAdd(int* address, int value) {
    const int old = *address;
    *address = old + value;
    return old;
}

inline unsigned long long atomicCAS(unsigned long long* address, unsigned long long expected,
                                    unsigned long long value) {
    const unsigned long long old = *address;
    if (old == expected) *address = value;
    return old;
}

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
using cudaStream_t = void*;

inline const char* cudaGetErrorString(cudaError_t status) {
    return status == cudaSuccess ? "no error" : "invalid value";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }

inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 227 * 1024, cudaSuccess; }

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
    return bytes <= 227 * 1024 ? cudaSuccess : cudaErrorInvalidValue;
}

struct cudaLaunchConfig_t {
    dim3 gridDim;
    dim3 blockDim;
    size_t dynamicSmemBytes = 0;
    cudaStream_t stream = nullptr;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    const bool fits = config->gridDim.x >= 1 && config->blockDim.x >= 1 && config->blockDim.x <= 1024;
    if (!fits || config->dynamicSmemBytes > 227 * 1024) return cudaErrorInvalidValue;
    emulator::run(config->gridDim.x, config->blockDim.x, config->dynamicSmemBytes, [&] { kernel(arguments...); });
    return cudaSuccess;
}
