// From scores to integers: everything after the one float subtraction is integer arithmetic, so every mapping of the work to threads,
// lanes and devices gives the same bytes. docs/arithmetic.md section 4.
#pragma once

#include "core/floats.h"
#include "core/philox.h"
#include "core/tables.h"

namespace compdx {
inline namespace COMPDX_ISA_NAMESPACE {

constexpr uint32_t kLog2eQ31 = 3098164009u;

// exp(score - largest) in Q24; relative error 6e-8, absolute 2^-25. 32 bits are enough at every step.
COMPDX_HD uint32_t exp_q24(float largest, float score) {
    const float t = largest - score;
    if (!(t < 17.0f)) return 0;
    const uint32_t q27 = static_cast<uint32_t>(t * 134217728.0f);
    const uint32_t y = hi32(q27, kLog2eQ31) << 1 | q27 * kLog2eQ31 >> 31;
    const uint32_t shift = y >> 27;
    const uint32_t fraction = (y & 0x7ffffffu) << 5;
    const uint32_t* c = exp2_coefficients();
    uint32_t q = c[5];
    q = c[4] - hi32(q, fraction);
    q = c[3] - hi32(q, fraction);
    q = c[2] - hi32(q, fraction);
    q = c[1] - hi32(q, fraction);
    q = c[0] - hi32(q, fraction);
    const uint32_t e = 0x80000000u - (hi32(q, fraction) >> 1);
    return (e + (1u << (6 + shift))) >> (7 + shift);
}

constexpr uint64_t kOneQ24 = 1ull << 24;

// Softmax of the label, Q30, from the sum of all exp_q24 (its own is 1).
COMPDX_HD uint32_t softmax_top_q30(uint64_t sum) { return static_cast<uint32_t>(((kOneQ24 << 30) + sum / 2) / sum); }

// Softmax of the label less that of another class, Q30.
COMPDX_HD uint32_t softmax_margin_q30(uint32_t exp_second, uint64_t sum) {
    return static_cast<uint32_t>(((kOneQ24 - exp_second) << 30) / sum);
}

// One division a row instead of one a class, and 32 bits: only a sum of exactly 1 would need one more, and gives the same
// probabilities, 1 and nothing but zeros, with one less.
COMPDX_HD uint32_t softmax_reciprocal(uint64_t sum) {
    return sum == kOneQ24 ? 0xffffffffu : static_cast<uint32_t>((1ull << 56) / sum);
}

COMPDX_HD uint32_t softmax_q15(uint32_t exp, uint32_t reciprocal) { return (hi32(exp, reciprocal) + (1u << 8)) >> 9; }

COMPDX_HD uint32_t probability_q30(float p) {
    p = p > 0.0f ? p : 0.0f;
    p = p < 1.0f ? p : 1.0f;
    return static_cast<uint32_t>(p * 1073741824.0f);
}

COMPDX_HD uint32_t probability_q15(uint32_t q30) { return (q30 + (1u << 14)) >> 15; }

}  // namespace COMPDX_ISA_NAMESPACE
}  // namespace compdx
