// What can be asked of a float without rounding it.
#pragma once

#include <cstring>

#include "core/platform.h"

namespace compdx {
inline namespace COMPDX_ISA_NAMESPACE {

COMPDX_HD uint32_t float_bits(float value) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(value);
#else
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
#endif
}

COMPDX_HD bool is_finite(float value) { return (float_bits(value) & 0x7f800000u) != 0x7f800000u; }

}  // namespace COMPDX_ISA_NAMESPACE
}  // namespace compdx
