// Which inputs of a neuron a slice keeps, and what they contribute. A weighted operation is a convolution without bias; a neuron is one
// element of its output, its taps are the weights whose input is not padding. docs/arithmetic.md section 8; NNSlicer sections 3 and 4.
#pragma once

#include "core/floats.h"

namespace compdx {

constexpr int64_t kMaxTaps = 65535;  // 46 bits each leave their sum and its differences within an int64

struct SliceTask {
    int64_t samples;
    int32_t channels, height, width;         // of the input
    int32_t outputs, out_height, out_width;  // of the output
    int32_t groups, kernel_height, kernel_width;
    int32_t stride[2], padding[2], dilation[2];  // vertical, horizontal
    double epsilon;
    double share;         // 1 - beta
    const float* delta;   // [samples][channels][height][width]
    const float* weight;  // [outputs][channels / groups][kernel_height][kernel_width]
    const int8_t* sign;   // [samples][outputs][out_height][out_width]; -1, 0, 1
    int32_t* inputs;      // like delta; null: not wanted, as for the others
    int32_t* signed_sum;  // like weight
    int32_t* absolute;    // like weight
    int32_t* per_sample;  // [samples] of what weight is
};

// The window of an output position in a sample's input. Its first row and column may lie in the padding.
struct Window {
    int32_t channel, row, column;
};

inline namespace COMPDX_ISA_NAMESPACE {

COMPDX_HD int32_t group_channels(const SliceTask& task) { return task.channels / task.groups; }
COMPDX_HD int32_t group_outputs(const SliceTask& task) { return task.outputs / task.groups; }
COMPDX_HD int32_t taps_of(const SliceTask& task) {
    return group_channels(task) * task.kernel_height * task.kernel_width;
}
COMPDX_HD int32_t input_size(const SliceTask& task) { return task.channels * task.height * task.width; }
COMPDX_HD int32_t positions_of(const SliceTask& task) { return task.out_height * task.out_width; }

COMPDX_HD bool wants_weights(const SliceTask& task) {
    return task.signed_sum != nullptr || task.absolute != nullptr || task.per_sample != nullptr;
}

COMPDX_HD Window window_of(const SliceTask& task, int32_t group, int32_t position) {
    return {group * group_channels(task), position / task.out_width * task.stride[0] - task.padding[0],
            position % task.out_width * task.stride[1] - task.padding[1]};
}

// Where the input of a tap lies in its sample, -1 in the padding.
COMPDX_HD int32_t input_of(const SliceTask& task, const Window& window, int32_t channel, int32_t row, int32_t column) {
    row = window.row + row * task.dilation[0];
    column = window.column + column * task.dilation[1];
    const bool inside = row >= 0 && row < task.height && column >= 0 && column < task.width;
    return inside ? ((window.channel + channel) * task.height + row) * task.width + column : -1;
}

COMPDX_HD int32_t input_of(const SliceTask& task, const Window& window, int32_t tap) {
    const int32_t column = tap % task.kernel_width;
    const int32_t rest = tap / task.kernel_width;
    return input_of(task, window, rest / task.kernel_height, rest % task.kernel_height, column);
}

COMPDX_HD uint32_t magnitude_of(float value) { return float_bits(value) & 0x7fffffffu; }
COMPDX_HD int32_t sign_of(float value) { return (value > 0.0f) - (value < 0.0f); }

// One rounding; what is too large becomes the largest finite number. The sign is that of the factors, also where they underflow.
COMPDX_HD float product_of(float weight, float delta) {
    constexpr uint32_t largest = 0x7f7fffffu;
    const uint32_t magnitude = magnitude_of(weight * delta);
    const uint32_t sign = (float_bits(weight) ^ float_bits(delta)) & 0x80000000u;
    return float_of_bits(sign | (magnitude < largest ? magnitude : largest));
}

// 2^(46 - e) for the largest magnitude m of a neuron, not 0: 2^(e - 1) <= m < 2^e. As a double no float is denormal.
COMPDX_HD double scale_of(uint32_t largest) {
    const uint64_t exponent = double_bits(static_cast<double>(float_of_bits(largest))) >> 52;
    return double_of_bits((46 + 1022 + 1023 - exponent) << 52);
}

// Both steps are exact but for the truncation.
COMPDX_HD int64_t scaled(float product, double scale) {
    return static_cast<int64_t>(static_cast<double>(product) * scale);
}

COMPDX_HD int64_t absolute_of(int64_t value) { return value < 0 ? -value : value; }

// 1000 |S| < max |q|, without a product that may overflow. The other reason to keep nothing is |S| < min |q|.
COMPDX_HD bool is_cancelled(int64_t total, int64_t largest) { return absolute_of(total) < (largest + 999) / 1000; }

COMPDX_HD bool is_near(int64_t sum, int64_t total, double epsilon) {
    return static_cast<double>(absolute_of(sum - total)) < epsilon * static_cast<double>(absolute_of(total));
}

// Ascending keys are descending magnitudes, equal ones by their index.
COMPDX_HD uint64_t key_of(uint32_t magnitude, uint32_t tap) {
    return static_cast<uint64_t>(0x7fffffffu - magnitude) << 16 | tap;
}
COMPDX_HD uint32_t tap_of(uint64_t key) { return static_cast<uint32_t>(key & 0xffffu); }

// The largest float that is not above |p| * share: what is kept is larger than this.
COMPDX_HD uint32_t bound_of(uint32_t magnitude, double share) {
    const double threshold = static_cast<double>(float_of_bits(magnitude)) * share;
    const float nearest = static_cast<float>(threshold);
    return static_cast<double>(nearest) > threshold ? float_bits(nearest) - 1 : float_bits(nearest);
}

constexpr uint32_t kKeepNothing = 0x7fffffffu;  // no magnitude is larger

// A product of more than one that is kept is not 0, so it has the sign of its factors.
COMPDX_HD int32_t contribution_of(float product, uint32_t bound, int32_t sign) {
    const int32_t signed_one = static_cast<int32_t>(float_bits(product)) < 0 ? -sign : sign;
    return magnitude_of(product) > bound ? signed_one : 0;
}

}  // namespace COMPDX_ISA_NAMESPACE
}  // namespace compdx
