// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011). docs/arithmetic.md section 1.
#pragma once

#include "core/platform.h"

namespace compdx {

struct Words {
    uint32_t w[4];
};

enum class Purpose : uint32_t { choose = 0, parameters = 1, pixels = 2, positions = 3, neurons = 4 };

// The random numbers of one mutant, or of one step of a gradient search, are addressed by what it is, never by where or when it is computed.
struct Stream {
    uint64_t seed;   // run seed
    uint64_t index;  // identity of the seed image, < 2^56
    uint32_t step;   // number of the mutant or of the step
};

inline namespace COMPDX_ISA_NAMESPACE {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u;
constexpr uint32_t kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u;
constexpr uint32_t kPhiloxW1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;

COMPDX_HD uint32_t hi32(uint32_t a, uint32_t b) { return static_cast<uint32_t>((static_cast<uint64_t>(a) * b) >> 32); }

// A word as a number in 0..n-1. The bias is at most n / 2^32.
COMPDX_HD uint32_t below(uint32_t word, uint32_t n) { return hi32(word, n); }

// Upper half of the product of two 64-bit words.
COMPDX_HD uint64_t hi64(uint64_t a, uint64_t b) {
    const uint64_t low = 0xffffffffu;
    const uint64_t first = (a >> 32) * (b & low) + ((a & low) * (b & low) >> 32);
    const uint64_t second = (a & low) * (b >> 32) + (first & low);
    return (a >> 32) * (b >> 32) + (first >> 32) + (second >> 32);
}

// Two words as a number in 0..n-1. The bias is at most n / 2^64.
COMPDX_HD uint64_t below64(uint32_t high, uint32_t low, uint64_t n) {
    return hi64(static_cast<uint64_t>(high) << 32 | low, n);
}

COMPDX_HD Words philox(uint32_t k0, uint32_t k1, Words c) {
    for (int round = 0; round < kPhiloxRounds; ++round) {
        const uint64_t p0 = static_cast<uint64_t>(kPhiloxM0) * c.w[0];
        const uint64_t p1 = static_cast<uint64_t>(kPhiloxM1) * c.w[2];
        const uint32_t c0 = static_cast<uint32_t>(p1 >> 32) ^ c.w[1] ^ k0;
        const uint32_t c2 = static_cast<uint32_t>(p0 >> 32) ^ c.w[3] ^ k1;
        c.w[1] = static_cast<uint32_t>(p1);
        c.w[3] = static_cast<uint32_t>(p0);
        c.w[0] = c0;
        c.w[2] = c2;
        k0 += kPhiloxW0;
        k1 += kPhiloxW1;
    }
    return c;
}

COMPDX_HD Words stream_counter(const Stream& stream, Purpose purpose, uint32_t block) {
    return {{block, stream.step, static_cast<uint32_t>(stream.index),
             static_cast<uint32_t>(purpose) | static_cast<uint32_t>(stream.index >> 32) << 8}};
}

COMPDX_HD uint32_t stream_key0(const Stream& stream) { return static_cast<uint32_t>(stream.seed); }
COMPDX_HD uint32_t stream_key1(const Stream& stream) { return static_cast<uint32_t>(stream.seed >> 32); }

COMPDX_HD Words stream_words(const Stream& stream, Purpose purpose, uint32_t block) {
    return philox(stream_key0(stream), stream_key1(stream), stream_counter(stream, purpose, block));
}

// The 16 bits of pixel p, from the words of block p >> 3.
COMPDX_HD uint32_t pixel_bits(const Words& words, uint32_t p) {
    return (words.w[(p & 7u) >> 1] >> ((p & 1u) * 16u)) & 0xffffu;
}

}  // namespace COMPDX_ISA_NAMESPACE
}  // namespace compdx
