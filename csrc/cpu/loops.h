// The loops over pixels and classes. loops.cpp is compiled once for each instruction set; callers get a table of functions.
#pragma once

#include "core/descent.h"
#include "core/operators.h"
#include "core/slices.h"
#include "core/slots.h"
#include "cpu/isa.h"

namespace compdx {

struct MutateTask {
    Draw draw;
    Stream stream;
    Shape shape;
    Overflow overflow;
    int32_t linf;
    const uint8_t* parent;  // [C, H, W]
    const uint8_t* origin;  // seed image; read only when linf >= 0
    const uint8_t* far;     // [C, H, W], the other end of a blend; read by no other operator
    uint8_t* mutant;        // [C, H, W], not the parent
    uint8_t* scratch;       // scratch_bytes(shape)
};

struct ScoreTask {
    const float* scores;  // [classes]
    int32_t classes;
    Scores kind;
    uint16_t* state;  // [classes], probabilities in Q15
};

struct Scored {
    bool finite;
    int32_t label;
    uint32_t confidence;  // Q30
    uint32_t margin;      // Q30
};

// How far a picture is from its seed, in grey levels.
struct Change {
    int64_t squares;
    int32_t largest;
};

// Neighbouring activations, `stride` elements apart.
struct Run {
    const float* data;
    int64_t stride;
};

struct Loops {
    void (*mutate)(const MutateTask&);
    void (*write_input)(const uint8_t* image, const Shape&, const Input&, int64_t slot);
    Scored (*score)(const ScoreTask&);
    uint64_t (*state_hash)(const uint16_t* state, int32_t classes, int model, uint32_t grid);
    uint64_t (*squared_distance)(const uint16_t* a, const uint16_t* b, int64_t count);
    Change (*descend)(const DescendTask&, int64_t image);
    int64_t (*count_lost)(const Run& original, const Run& compressed, int64_t count);
    void (*cover)(const Run& values, uint8_t* covered, int64_t count);
    // The largest magnitude of the products, as bits.
    uint32_t (*multiply)(const float* weight, const float* delta, int32_t count, float* products);
    int64_t (*sum_scaled)(const float* products, int32_t count, double scale);
    // Writes the keys of the products with low < magnitude <= high, in the order of their taps; returns their number. Room: count.
    int32_t (*gather)(const float* products, int32_t count, uint32_t low, uint32_t high, uint64_t* keys);
    // Adds the contributions of the products above the bound to the counts of their weights and of their inputs.
    void (*contribute)(const float* products, int32_t count, uint32_t bound, int32_t sign, int32_t* weights,
                       int32_t* inputs);
};

// A plane with the widest border around it and room for whole vectors beyond its end, rounded up to whole cache lines.
constexpr int64_t padded_extent(const Shape& shape) {
    const int64_t extent = static_cast<int64_t>(shape.height + 6) * (shape.width + 6) + 192;
    return (extent + 63) / 64 * 64;
}

// Working memory of one call of mutate: two planes of bytes, one of 16-bit sums.
constexpr int64_t scratch_bytes(const Shape& shape) { return 4 * padded_extent(shape); }

const Loops& loops(Isa isa);

// One copy of loops.cpp each. Not the inline namespaces of the core, which exist only where that copy is compiled.
namespace compiled_for {
namespace scalar {
const Loops& loops();
}
#if defined(__x86_64__)
namespace avx2 {
const Loops& loops();
}
namespace avx512 {
const Loops& loops();
}
#endif
}  // namespace compiled_for

}  // namespace compdx
