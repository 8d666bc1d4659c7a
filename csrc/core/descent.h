// One step of a gradient search on one value, and its picture. docs/arithmetic.md section 6; CompD sections 1, 3 and 4.
#pragma once

#include <cfloat>

#include "core/floats.h"
#include "core/rules.h"

namespace compdx {

// One step of many images. All of [C] is in units of the model input.
struct DescendTask {
    Shape shape;
    float step;
    bool project;
    bool lattice;
    const float* table;  // [C][256], the model input of every grey level
    const float* scale;  // [C], grey levels a unit
    const float* bound;  // [C], largest change of this step; null: none
    const float* total;  // [C], largest distance from the seed; null: none
    int64_t count;
    const uint8_t* active;  // [count]; null: all are
    float* state;           // [count][C][H][W]
    const float* gradient;  // [count][C][H][W]
    const uint8_t* origin;  // [count][C][H][W], the seeds
    uint8_t* picture;       // [count][C][H][W]
    int64_t* l2_squared;    // [count], of the picture to the seed, in grey levels
    uint8_t* linf;          // [count]
};

inline namespace COMPDX_ISA_NAMESPACE {

// What is the same for all values of a channel.
struct Channel {
    float step;
    float scale;
    float bound;
    float total;
    float base;  // the model input of grey level 0
    float low;
    float high;
};

COMPDX_HD Channel channel_of(const DescendTask& task, int32_t c) {
    const float* table = task.table + c * 256;
    return {task.step,
            task.scale[c],
            task.bound != nullptr ? task.bound[c] : FLT_MAX,
            task.total != nullptr ? task.total[c] : FLT_MAX,
            table[0],
            task.project ? table[0] : -FLT_MAX,
            task.project ? table[255] : FLT_MAX};
}

// What is not a number becomes `low`.
COMPDX_HD float clamped(float value, float low, float high) {
    value = value > low ? value : low;
    return value < high ? value : high;
}

// The state after the step, always finite. `centre` is the model input of the seed, or 0 when there is no limit to the distance from it.
COMPDX_HD float descended(const Channel& channel, float state, float gradient, float centre) {
    const float slope = is_finite(gradient) ? gradient : 0.0f;
    state += clamped(-(channel.step * slope), -channel.bound, channel.bound);
    state = clamped(state, centre - channel.total, centre + channel.total);
    return clamped(state, channel.low, channel.high);
}

// The nearest grey level, ties to even. Within 0..255 the addition of 2^23 rounds to an integer, which is then the low byte.
COMPDX_HD uint8_t picture_of(const Channel& channel, float state) {
    const float level = clamped((state - channel.base) * channel.scale, 0.0f, 255.0f);
    return static_cast<uint8_t>(float_bits(level + 8388608.0f));
}

}  // namespace COMPDX_ISA_NAMESPACE
}  // namespace compdx
