// Output states and the sets that remember them. docs/arithmetic.md section 4.
#pragma once

#include "core/platform.h"

namespace compdx {
inline namespace COMPDX_ISA_NAMESPACE {

// Finaliser of SplitMix64.
COMPDX_HD uint64_t mix64(uint64_t z) {
    z ^= z >> 30;
    z *= 0xbf58476d1ce4e5b9ull;
    z ^= z >> 27;
    z *= 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

COMPDX_HD uint32_t state_cell(uint32_t q15, uint32_t grid) { return (q15 * grid + (1u << 14)) >> 15; }

// Contribution of one probability to the hash of a state. A sum of these does not depend on the order of the classes' evaluation.
COMPDX_HD uint64_t state_term(int model, int k, uint32_t cell) {
    const uint64_t term = mix64((static_cast<uint64_t>(model) << 63) ^ (static_cast<uint64_t>(k) << 32) ^ cell);
    return cell == 0 ? 0 : term;
}

COMPDX_HD uint32_t state_tag(uint64_t hash) {
    const uint32_t tag = static_cast<uint32_t>(hash ^ (hash >> 32));
    return tag == 0 ? 1 : tag;
}

// A chain's private table: `capacity` tags (a power of two), then a bit for each that says whether its place is taken. A new chain
// clears the bits alone, one word for 32 tags; what its predecessor has left in the other places is never read.
COMPDX_HD constexpr int64_t taken_words(uint32_t capacity) { return (static_cast<int64_t>(capacity) + 31) / 32; }
COMPDX_HD constexpr int64_t table_words(uint32_t capacity) { return capacity + taken_words(capacity); }

COMPDX_HD bool is_taken(const uint32_t* taken, uint32_t place) { return (taken[place / 32] >> place % 32 & 1u) != 0; }

// Enters a tag. Returns whether it was new. `stored` counts the tags that were new; from half full on, a new tag takes its first place,
// so the table never fills up and old states are forgotten.
COMPDX_HD bool enter_tag(uint32_t* tags, uint32_t capacity, uint32_t stored, uint32_t tag) {
    uint32_t* taken = tags + capacity;
    const uint32_t mask = capacity - 1;
    uint32_t place = tag & mask;
    for (uint32_t probes = 0; probes < capacity && is_taken(taken, place); ++probes) {
        if (tags[place] == tag) return false;
        place = (place + 1) & mask;
    }
    if (stored >= capacity / 2) place = tag & mask;
    tags[place] = tag;
    taken[place / 32] |= 1u << place % 32;
    return true;
}

COMPDX_HD uint64_t squared_difference(uint16_t a, uint16_t b) {
    const int32_t d = static_cast<int32_t>(a) - static_cast<int32_t>(b);
    return static_cast<uint64_t>(static_cast<int64_t>(d) * d);
}

}  // namespace COMPDX_ISA_NAMESPACE
}  // namespace compdx
