// Borders, windows and rounding of the three blurs, equal to OpenCV's 8-bit blur, GaussianBlur (sigma = 0) and medianBlur.
#pragma once

#include "core/platform.h"

namespace compdx {
inline namespace COMPDX_ISA_NAMESPACE {

constexpr int kMaxRadius = 3;

// BORDER_REFLECT_101: gfedcb|abcdefgh|gfedcba. Windows larger than the image reflect repeatedly.
COMPDX_HD int32_t reflect101(int32_t i, int32_t length) {
    if (length == 1) return 0;
    while (i < 0 || i >= length) i = i < 0 ? -i : 2 * length - 2 - i;
    return i;
}

// BORDER_REPLICATE: aaaaaa|abcdefgh|hhhhhhh.
COMPDX_HD int32_t replicate(int32_t i, int32_t length) { return i < 0 ? 0 : (i >= length ? length - 1 : i); }

// Mean of size * size pixels from their sum. OpenCV rounds odd windows to nearest and even ones by its own bias.
template <int size>
COMPDX_HD uint8_t box_mean(uint16_t sum) {
    static_assert(size >= 2 && size <= 5, "box windows are 2..5");
    // 7282 / 2^16 and 5243 / 2^17 equal / 9 and / 25 for every sum that can occur (checked exhaustively in the tests).
    if (size == 2) return static_cast<uint8_t>((sum + 3u) >> 2);
    if (size == 3) return static_cast<uint8_t>(((sum + 4u) * 7282u) >> 16);
    if (size == 4) return static_cast<uint8_t>((sum + 9u) >> 4);
    return static_cast<uint8_t>(((sum + 12u) * 5243u) >> 17);
}

// Taps of one axis, scaled down to the smallest integers; their sum is 2^gaussian_bits.
template <int size>
COMPDX_HD constexpr uint32_t gaussian_tap(int i) {
    static_assert(size == 3 || size == 5 || size == 7, "Gaussian windows are 3, 5, 7");
    const int distance = i < size / 2 ? size / 2 - i : i - size / 2;
    if (size == 3) return distance == 0 ? 2 : 1;
    if (size == 5) return distance == 0 ? 6 : (distance == 1 ? 4 : 1);
    return distance == 0 ? 18 : (distance == 1 ? 14 : (distance == 2 ? 7 : 2));
}

template <int size>
constexpr int gaussian_bits = size == 3 ? 2 : (size == 5 ? 4 : 6);

template <int size>
COMPDX_HD uint8_t gaussian_mean(uint32_t sum) {
    constexpr int shift = 2 * gaussian_bits<size>;
    return static_cast<uint8_t>((sum + (1u << (shift - 1))) >> shift);
}

}  // namespace COMPDX_ISA_NAMESPACE
}  // namespace compdx
