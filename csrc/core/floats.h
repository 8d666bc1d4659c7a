// Floats and their bits, and what can be asked of a float without rounding it.
#pragma once

#include <cstring>

#include "core/platform.h"

namespace compdx {
inline namespace COMPDX_ISA_NAMESPACE {

// The same bits as another type. Compilers of both sides make a move of registers of the copy, or nothing.
template <class To, class From>
COMPDX_HD To same_bits(From value) {
    static_assert(sizeof(To) == sizeof(From), "bits of one for bits of the other");
    To result;
    memcpy(&result, &value, sizeof result);
    return result;
}

COMPDX_HD uint32_t float_bits(float value) { return same_bits<uint32_t>(value); }
COMPDX_HD float float_of_bits(uint32_t bits) { return same_bits<float>(bits); }
COMPDX_HD uint64_t double_bits(double value) { return same_bits<uint64_t>(value); }
COMPDX_HD double double_of_bits(uint64_t bits) { return same_bits<double>(bits); }

COMPDX_HD bool is_finite(float value) { return (float_bits(value) & 0x7f800000u) != 0x7f800000u; }

}  // namespace COMPDX_ISA_NAMESPACE
}  // namespace compdx
