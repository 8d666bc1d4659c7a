// Point operators: one pixel, its random bits, the new pixel. docs/arithmetic.md section 2.
#pragma once

#include "core/operators.h"
#include "core/tables.h"

namespace compdx {
inline namespace COMPDX_ISA_NAMESPACE {

template <Overflow overflow>
COMPDX_HD uint8_t store_pixel(int32_t value) {
    if (overflow == Overflow::wrap) return static_cast<uint8_t>(value & 255);
    value = value < 0 ? 0 : value;
    return static_cast<uint8_t>(value > 255 ? 255 : value);
}

// Thresholds of 16 random bits for trunc(N(0, 0.1)) in 8-bit levels: P(below -1) = Q(1 / sqrt(0.1)) = 7.8e-4 = 51 / 65536.
constexpr int32_t kAdditiveMinusTwo = 51;
constexpr int32_t kAdditiveMinusOne = 32768;
constexpr int32_t kAdditiveZero = 65485;

template <Overflow overflow>
COMPDX_HD uint8_t additive(uint8_t pixel, uint16_t bits) {
    const int32_t step = (bits >= kAdditiveMinusTwo) + (bits >= kAdditiveMinusOne) + (bits >= kAdditiveZero) - 2;
    int32_t value = static_cast<int32_t>(pixel) + step;
    value += value < 0;  // floats are truncated towards zero, so -0.3 is 0 and -1.2 is -1
    return store_pixel<overflow>(value);
}

// Standard normal in Q12 from 16 bits.
COMPDX_HD int32_t normal_q12(uint16_t bits) {
    const uint32_t u = bits & 0x7fffu;
    const bool tail = u >= 32256u;
    const uint32_t segment = tail ? 64u + ((u & 511u) >> 3) : u >> 9;
    const uint32_t fraction = tail ? (u & 7u) << 13 : (u & 511u) << 7;
    const int32_t z =
        normal_base()[segment] + static_cast<int32_t>((static_cast<uint32_t>(normal_rise()[segment]) * fraction) >> 16);
    return (bits >> 15) != 0 ? -z : z;
}

template <Overflow overflow>
COMPDX_HD uint8_t multiplicative(uint8_t pixel, int32_t normal, int32_t mean, int32_t sigma) {
    const int32_t factor = 65536 + mean + ((sigma * normal) >> 12);
    const int32_t product = static_cast<int32_t>(pixel) * factor;
    return store_pixel<overflow>(product < 0 ? -((-product) >> 16) : product >> 16);
}

// `weight` sixteenths of the way from one pixel to another, rounded up or down at random; never beyond either.
COMPDX_HD uint8_t blend(uint8_t near, uint8_t far, int32_t weight, uint16_t bits) {
    const int32_t way = (static_cast<int32_t>(far) - near) * (weight * (65536 / 16));
    return static_cast<uint8_t>(near + ((way + bits) >> 16));
}

COMPDX_HD uint8_t bound_pixel(uint8_t value, uint8_t origin, int32_t linf) {
    int32_t low = static_cast<int32_t>(origin) - linf;
    int32_t high = static_cast<int32_t>(origin) + linf;
    int32_t y = value;
    y = y < low ? low : y;
    y = y > high ? high : y;
    return static_cast<uint8_t>(y);  // value is within 0..255 and only moves towards origin
}

// Place of speck i of salt & pepper, in 0..pixels-1; i < size is salt, the rest pepper.
COMPDX_HD uint32_t speck_position(const Stream& stream, uint32_t i, uint32_t pixels) {
    return below(stream_words(stream, Purpose::positions, i >> 2).w[i & 3u], pixels);
}

struct PixelChange {
    uint32_t position;
    uint8_t value;
};

COMPDX_HD PixelChange pixel_change(const Stream& stream, uint32_t i, uint32_t pixels) {
    const Words words = stream_words(stream, Purpose::positions, i);
    return {below(words.w[0], pixels), static_cast<uint8_t>(words.w[1] >> 24)};
}

}  // namespace COMPDX_ISA_NAMESPACE
}  // namespace compdx
