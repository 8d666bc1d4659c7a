// Sorting and merging by exchanges that are worked out at compile time: Batcher's odd-even merge (Knuth, TAOCP 5.3.4). What is asked of a
// result decides what is computed: a compiler drops the minima and maxima that lead nowhere.
#pragma once

#include <utility>

#include "core/median.h"

namespace compdx {
inline namespace COMPDX_ISA_NAMESPACE {

// Wires, in ascending order of the values on them.
template <int most>
struct Wires {
    int count = 0;
    int at[most] = {};

    constexpr void add(int wire) { at[count++] = wire; }

    // Every second one.
    constexpr Wires half(int first) const {
        Wires result;
        for (int i = first; i < count; i += 2) result.add(at[i]);
        return result;
    }
};

template <int wires>
struct Network {
    int count = 0;
    int low[8 * wires] = {};  // exchange i leaves the smaller value on wire low[i], the larger one on high[i]
    int high[8 * wires] = {};
    Wires<wires> sorted;

    constexpr void exchange(int smaller, int larger) {
        low[count] = smaller;
        high[count] = larger;
        count += 1;
    }

    constexpr Wires<wires> merge(const Wires<wires>& a, const Wires<wires>& b) {
        if (a.count == 0) return b;
        if (b.count == 0) return a;
        Wires<wires> result;
        if (a.count == 1 && b.count == 1) {
            exchange(a.at[0], b.at[0]);
            result.add(a.at[0]);
            result.add(b.at[0]);
            return result;
        }
        const Wires<wires> even = merge(a.half(0), b.half(0));
        const Wires<wires> odd = merge(a.half(1), b.half(1));
        result.add(even.at[0]);
        for (int i = 0; result.count < a.count + b.count; ++i) {
            const bool both = i + 1 < even.count && i < odd.count;
            if (both) exchange(even.at[i + 1], odd.at[i]);
            if (i + 1 < even.count) result.add(even.at[i + 1]);
            if (i < odd.count) result.add(odd.at[i]);
        }
        return result;
    }

    constexpr Wires<wires> sort(int first, int end) {
        Wires<wires> result;
        if (end - first == 1) {
            result.add(first);
            return result;
        }
        const int middle = (first + end) / 2;
        const Wires<wires> left = sort(first, middle);
        return merge(left, sort(middle, end));
    }
};

template <int wires>
constexpr Network<wires> sorting_network() {
    Network<wires> network;
    network.sorted = network.sort(0, wires);
    return network;
}

template <int left, int right>
constexpr Network<left + right> merging_network() {
    Network<left + right> network;
    Wires<left + right> a, b;
    for (int i = 0; i < left; ++i) a.add(i);
    for (int i = 0; i < right; ++i) b.add(left + i);
    network.sorted = network.merge(a, b);
    return network;
}

template <int wires>
struct Sorting {
    static constexpr Network<wires> network = sorting_network<wires>();
};

template <int left, int right>
struct Merging {
    static constexpr Network<left + right> network = merging_network<left, right>();
};

// Numbers of their own, so that device code reads no table of the host.
template <class Source, int i>
constexpr int low_wire = Source::network.low[i];
template <class Source, int i>
constexpr int high_wire = Source::network.high[i];
template <class Source, int i>
constexpr int sorted_wire = Source::network.sorted.at[i];

template <class Source, class T, int... i>
COMPDX_HD void exchange_all(T* v, std::integer_sequence<int, i...>) {
    (order(v[low_wire<Source, i>], v[high_wire<Source, i>]), ...);
}

template <class Source, int first, class T, int... i>
COMPDX_HD void take_sorted(const T* v, T* out, std::integer_sequence<int, i...>) {
    ((out[i] = v[sorted_wire<Source, first + i>]), ...);
}

// v[0..count) in ascending order.
template <int count, class T>
COMPDX_HD void sort_values(const T* v, T* out) {
    T wires[count];
    COMPDX_UNROLL
    for (int i = 0; i < count; ++i) wires[i] = v[i];
    exchange_all<Sorting<count>>(wires, std::make_integer_sequence<int, Sorting<count>::network.count>());
    take_sorted<Sorting<count>, 0>(wires, out, std::make_integer_sequence<int, count>());
}

// The values of ranks first..first + count - 1 (0 is the smallest) of two sorted lists together.
template <int left, int right, int first, int count, class T>
COMPDX_HD void merge_sorted(const T* a, const T* b, T* out) {
    using Source = Merging<left, right>;
    T wires[left + right];
    COMPDX_UNROLL
    for (int i = 0; i < left; ++i) wires[i] = a[i];
    COMPDX_UNROLL
    for (int i = 0; i < right; ++i) wires[left + i] = b[i];
    exchange_all<Source>(wires, std::make_integer_sequence<int, Source::network.count>());
    take_sorted<Source, first>(wires, out, std::make_integer_sequence<int, count>());
}

// ---- medians of neighbouring windows ------------------------------------------------------------------------------------------------

// Two windows beside each other share size - 1 columns, whose values come as (size - 1) / 2 sorted pairs of columns. size * size / 2
// values lie below a median, so that only the size + 1 middle ones of the shared values can be one.
template <int size, class T>
COMPDX_HD void middle_of_shared(const T (*pairs)[2 * size], T* out) {
    static_assert(size == 3 || size == 5 || size == 7, "median windows are 3, 5, 7");
    constexpr int first = size * size / 2 - size;
    if constexpr (size == 3) {
        COMPDX_UNROLL
        for (int i = 0; i < size + 1; ++i) out[i] = pairs[0][first + i];
    } else if constexpr (size == 5) {
        merge_sorted<2 * size, 2 * size, first, size + 1>(pairs[0], pairs[1], out);
    } else {
        constexpr int dropped =
            4 * size - size * size / 2 - 1;  // of 28 values, as many can neither be below nor above a median
        T four[4 * size - 2 * dropped];
        merge_sorted<2 * size, 2 * size, dropped, 4 * size - 2 * dropped>(pairs[0], pairs[1], four);
        merge_sorted<4 * size - 2 * dropped, 2 * size, first - dropped, size + 1>(four, pairs[2], out);
    }
}

// Of the window that has a column of its own beside the shared ones.
template <int size, class T>
COMPDX_HD T median_with_column(const T* middle, const T* column) {
    T result;
    merge_sorted<size + 1, size, size, 1>(middle, column, &result);
    return result;
}

// Medians of 2 * twins windows beside one another. load(j, values) gives the `size` values of column j, in any order; column 0 is the
// first of the first window.
template <int size, int twins, class T, class Load>
COMPDX_HD void medians(const Load& load, T* out) {
    constexpr int shared = (size - 1) / 2;  // pairs of columns
    constexpr int pairs = shared + twins - 1;
    T odd[pairs + 1][size], even[pairs + 1][size], both[pairs][2 * size];
    const auto column = [&load](int j, T* sorted) {
        T values[size];
        load(j, values);
        sort_values<size>(values, sorted);
    };
    COMPDX_UNROLL
    for (int i = 0; i < pairs; ++i) {
        column(2 * i + 1, odd[i]);
        column(2 * i + 2, even[i + 1]);
        merge_sorted<size, size, 0, 2 * size>(odd[i], even[i + 1], both[i]);
    }
    column(0, even[0]);
    column(2 * pairs + 1, odd[pairs]);
    COMPDX_UNROLL
    for (int i = 0; i < twins; ++i) {
        T middle[size + 1];
        middle_of_shared<size>(both + i, middle);
        out[2 * i] = median_with_column<size>(middle, even[i]);
        out[2 * i + 1] = median_with_column<size>(middle, odd[i + shared]);
    }
}

}  // namespace COMPDX_ISA_NAMESPACE
}  // namespace compdx
