// The middle of size * size values by forgetful selection: keep just over half of the values, drop the smallest and the largest, take in
// the next one. Branch-free minima and maxima only, so T may be one pixel, two packed pixels or a whole SIMD register.
#pragma once

#include "core/platform.h"

namespace compdx {
inline namespace COMPDX_ISA_NAMESPACE {

template <class T>
COMPDX_HD void order(T& a, T& b) {
    const T low = a < b ? a : b;
    b = a < b ? b : a;
    a = low;
}

// order(v[first], v[first + 1]), ... unrolled by templates: register arrays must have constant indices.
template <int i, int end, class T>
COMPDX_HD void order_pairs(T* v) {
    if constexpr (i < end / 2) {
        order(v[i], v[end - 1 - i]);
        order_pairs<i + 1, end>(v);
    }
}

template <int i, int end, class T>
COMPDX_HD void sink_smallest(T* v) {
    if constexpr (i < end) {
        order(v[0], v[i]);
        sink_smallest<i + 1, end>(v);
    }
}

template <int i, int last, class T>
COMPDX_HD void raise_largest(T* v) {
    if constexpr (i < last) {
        order(v[i], v[last]);
        raise_largest<i + 1, last>(v);
    }
}

// Smallest of v[0..count) to the front, largest to the back.
template <int count, class T>
COMPDX_HD void extremes_outward(T* v) {
    order_pairs<0, count>(v);
    sink_smallest<1, (count + 1) / 2>(v);
    raise_largest<count / 2, count - 1>(v);
}

template <int i, int end, class T, class Load>
COMPDX_HD void load_first(T* v, const Load& load) {
    if constexpr (i < end) {
        v[i] = load(i);
        load_first<i + 1, end>(v, load);
    }
}

template <int count, int next, int total, class T, class Load>
COMPDX_HD T forget(T* v, const Load& load) {
    extremes_outward<count>(v);
    if constexpr (next == total) {
        static_assert(count == 3, "one value must be left between the extremes");
        return v[1];
    } else {
        v[0] = load(next);
        return forget<count - 1, next + 1, total>(v, load);
    }
}

// load(i) gives the i-th value of the window, i < size * size, in any fixed order.
template <int size, class T, class Load>
COMPDX_HD T median(const Load& load) {
    constexpr int total = size * size;
    constexpr int kept = total / 2 + 2;
    T v[kept];
    load_first<0, kept>(v, load);
    return forget<kept, kept, total>(v, load);
}

}  // namespace COMPDX_ISA_NAMESPACE
}  // namespace compdx
