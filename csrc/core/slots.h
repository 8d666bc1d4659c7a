// Everything that a running search owns, as plain pointers on one device. The owner is Python; nothing here allocates or frees.
#pragma once

#include "core/chain.h"

namespace compdx {

// Counters that travel with the search. `ended` is the write position of the harvest ring: record i lies at i modulo its capacity.
// `consumed` is the reader's, who alone writes it: what lies before it has been read and may be overwritten.
struct Counters {
    int64_t next;      // place in the queue of the next seed to load
    int64_t ended;     // chains harvested so far
    int64_t active;    // slots that will take part in the next iteration
    int64_t queries;   // queries asked for so far
    int64_t consumed;  // chains read from the ring so far
};

// Image buffers of a slot: the current image, the mutant, and the far end of a bisection.
COMPDX_HD int buffers_of(const Rules& rules) { return rules.bisect > 0 ? 3 : 2; }

struct Slots {
    int64_t count;
    int64_t pitch;    // bytes from one image to the next, >= shape.size()
    Chain* chains;    // [count]
    uint8_t* images;  // [buffers_of(rules)][count][pitch], planar C, H, W
    uint8_t* traces;  // [count][budget], one byte a step: operator with the flags of chain.h
    void* coverage;   // hash: uint32 [count][table_words(capacity)]; nearest: uint16 [count][capacity][2 * classes]
    Counters* counters;

    const uint8_t* seeds;        // [seed_count][shape.size()]
    const uint64_t* identities;  // [seed_count]
    int64_t seed_count;
    const int64_t* queue;  // [queue_length], rows of seeds
    int64_t queue_length;

    int64_t ring_capacity;
    Chain* ring_chains;    // [ring_capacity]
    uint8_t* ring_images;  // [ring_capacity][shape.size()]
    uint8_t* ring_traces;  // [ring_capacity][budget]

    COMPDX_HD uint8_t* image(int buffer, int64_t slot) const { return images + (buffer * count + slot) * pitch; }
    COMPDX_HD const uint8_t* seed(int64_t row, int32_t size) const { return seeds + row * size; }
};

// What the models are fed: dtype and layout of the input array, and the table that turns a pixel into its value.
enum class InputType : int32_t { uint8 = 0, float32 = 1, half = 2 };  // half: any 16-bit pattern (bfloat16, float16)
enum class Layout : int32_t { nchw = 0, nhwc = 1 };

struct Input {
    void* data;         // [count][C][H][W] or [count][H][W][C]
    const void* table;  // [C][256] of the element type; null for uint8
    InputType type;
    Layout layout;

    COMPDX_HD int64_t element_size() const {
        return type == InputType::uint8 ? 1 : (type == InputType::float32 ? 4 : 2);
    }
};

}  // namespace compdx
