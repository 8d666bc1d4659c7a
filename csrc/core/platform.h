// What differs between a host compiler and nvcc, and nothing else.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define COMPDX_HD __host__ __device__ __forceinline__
#else
#define COMPDX_HD inline
#endif

// Arrays in registers need constant indices. The host compiler behind nvcc sees the same functions and knows no such pragma.
#if defined(__CUDA_ARCH__)
#define COMPDX_UNROLL _Pragma("unroll")
#else
#define COMPDX_UNROLL
#endif

// The same header is compiled once for each instruction set. Without a namespace of its own the linker could keep the AVX-512
// copy of an inline function and call it on a machine that has no AVX-512.
#if !defined(COMPDX_ISA_NAMESPACE)
#define COMPDX_ISA_NAMESPACE base
#endif

// A read-only table that host code and device code read through the same function.
#if defined(__CUDACC__)
#define COMPDX_TABLE(type, name, count, ...)                           \
    static const type name##_host[count] = {__VA_ARGS__};              \
    static __device__ const type name##_device[count] = {__VA_ARGS__}; \
    COMPDX_HD const type* name() { return COMPDX_PICK(name##_host, name##_device); }
#if defined(__CUDA_ARCH__)
#define COMPDX_PICK(host, device) device
#else
#define COMPDX_PICK(host, device) host
#endif
#else
#define COMPDX_TABLE(type, name, count, ...)              \
    static const type name##_host[count] = {__VA_ARGS__}; \
    inline const type* name() { return name##_host; }
#endif
