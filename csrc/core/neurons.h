// Neurons of a batch of activations: which were positive, and the choice of one that the compressed model lost. A neuron is a layer and
// a position, counted in the logical order of a row's shape whatever its layout in memory. docs/arithmetic.md section 7; CompD section 2.
#pragma once

#include "core/philox.h"

namespace compdx {

constexpr int kMaxAxes = 4;
constexpr int kMaxLayers = 1024;
constexpr uint32_t kScanBlock = 0xffffffffu;  // no draw has this number

// Where one model's activations of a layer lie. Strides are in elements.
struct Rows {
    const float* data;
    int64_t row;  // from one row of the batch to the next
    int64_t strides[kMaxAxes];
};

struct Layer {
    int64_t first;  // neurons of all layers before this one
    int64_t count;  // neurons, below 2^31
    int64_t axes;   // of a row, at least 1; the last one varies fastest
    int32_t extents[kMaxAxes];
    Rows values[2];    // select: original and compressed; cover: the one that counts
    uint8_t* covered;  // cover: [count], becomes 1 where a value is positive
};

struct SelectTask {
    uint64_t seed;
    int32_t trials;
    const Layer* layers;
    int32_t layer_count;
    int64_t count;               // rows
    const uint64_t* identities;  // [count]
    const uint32_t* steps;       // [count]
    const uint8_t* active;       // [count]; null: all are
    int32_t* layer;              // [count], -1: none
    int64_t* position;           // [count], -1: none
};

struct CoverTask {
    const Layer* layers;
    int32_t layer_count;
    int64_t neurons;  // of all layers
    int64_t count;    // rows
    const uint8_t* active;
};

struct Neuron {
    int32_t layer;
    int64_t position;
};

inline namespace COMPDX_ISA_NAMESPACE {

COMPDX_HD int64_t offset_of(const Layer& layer, const Rows& rows, int64_t row, int64_t position) {
    int64_t offset = row * rows.row;
    uint32_t rest = static_cast<uint32_t>(position);  // devices divide 32 bits much faster than 64
    for (int64_t axis = layer.axes - 1; axis > 0; --axis) {
        const uint32_t extent = static_cast<uint32_t>(layer.extents[axis]);
        offset += static_cast<int64_t>(rest % extent) * rows.strides[axis];
        rest /= extent;
    }
    return offset + static_cast<int64_t>(rest) * rows.strides[0];
}

COMPDX_HD float value_of(const Layer& layer, int model, int64_t row, int64_t position) {
    return layer.values[model].data[offset_of(layer, layer.values[model], row, position)];
}

// Alive in the original, dead in the compressed model; what is not a number is neither.
COMPDX_HD bool is_lost(float original, float compressed) { return original > 0.0f && compressed <= 0.0f; }

COMPDX_HD bool is_lost(const Layer& layer, int64_t row, int64_t position) {
    return is_lost(value_of(layer, 0, row, position), value_of(layer, 1, row, position));
}

// Draw number `trial`: a layer, then a position in it.
COMPDX_HD Neuron drawn_neuron(const SelectTask& task, const Stream& stream, uint32_t trial) {
    const Words words = stream_words(stream, Purpose::neurons, trial);
    const uint64_t layer = below64(words.w[0], words.w[1], static_cast<uint64_t>(task.layer_count));
    const uint64_t count = static_cast<uint64_t>(task.layers[layer].count);
    return {static_cast<int32_t>(layer), static_cast<int64_t>(below64(words.w[2], words.w[3], count))};
}

// The share of a layer's neurons that are lost, Q48: what endless draws would give the layer.
COMPDX_HD uint64_t layer_weight(int64_t lost, int64_t count) {
    const uint64_t whole = static_cast<uint64_t>(count);
    const uint64_t part = static_cast<uint64_t>(lost) << 32;
    return part / whole << 16 | (part % whole << 16) / whole;
}

struct ScanDraw {
    int32_t layer;  // -1 when no neuron is lost
    int64_t place;  // which of the layer's lost neurons, from 0
};

// The law of endless draws, from what a look at all neurons has counted.
COMPDX_HD ScanDraw scan_draw(const Stream& stream, const int64_t* lost, const uint64_t* weights, int32_t layers) {
    uint64_t total = 0;
    for (int32_t l = 0; l < layers; ++l) total += weights[l];
    if (total == 0) return {-1, -1};
    const Words words = stream_words(stream, Purpose::neurons, kScanBlock);
    uint64_t rest = below64(words.w[0], words.w[1], total);
    int32_t layer = 0;
    for (; rest >= weights[layer]; ++layer) rest -= weights[layer];
    return {layer, static_cast<int64_t>(below64(words.w[2], words.w[3], static_cast<uint64_t>(lost[layer])))};
}

}  // namespace COMPDX_ISA_NAMESPACE
}  // namespace compdx
