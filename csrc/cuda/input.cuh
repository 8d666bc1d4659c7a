// An image as the models want to be fed: through a table of values, planar or interleaved.
#pragma once

#include "core/slots.h"
#include "cuda/common.cuh"

namespace compdx::cuda {

struct SameBytes {
    using Element = uint8_t;
    __device__ uint8_t operator()(int32_t, uint8_t pixel) const { return pixel; }
};

template <class T>
struct TableOf {
    using Element = T;
    const void* values;  // [C][256]
    __device__ T operator()(int32_t channel, uint8_t pixel) const {
        return static_cast<const T*>(values)[channel * 256 + pixel];
    }
};

// 16 bytes of output a thread, so that neighbouring threads write whole sectors.
template <class Element>
constexpr int elements_together = sizeof(Element) == 4 ? 4 : 8;

template <class Value>
__device__ __forceinline__ void write_planar(const uint8_t* image, const Shape& shape, const Value& value,
                                             typename Value::Element* out) {
    using Element = typename Value::Element;
    constexpr int each = elements_together<Element>;
    const int32_t plane = shape.plane();
    for (int32_t c = 0; c < shape.channels; ++c) {
        const int64_t offset = static_cast<int64_t>(c) * plane;
        for (int32_t i = each * threadIdx.x; i < plane; i += each * blockDim.x) {
            const Pack<uint8_t, each> pixels = load_pack<each>(image + offset + i, plane - i);
            Pack<Element, each> values;
#pragma unroll
            for (int j = 0; j < each; ++j) values.v[j] = value(c, pixels.v[j]);
            store_pack(out + offset + i, plane - i, values);
        }
    }
}

template <class Value>
__device__ __forceinline__ void write_interleaved(const uint8_t* image, const Shape& shape, const Value& value,
                                                  typename Value::Element* out) {
    using Element = typename Value::Element;
    constexpr int each = elements_together<Element>;
    const int32_t plane = shape.plane();
    const int32_t count = shape.size();
    for (int32_t i = each * threadIdx.x; i < count; i += each * blockDim.x) {
        int32_t pixel = i / shape.channels;
        int32_t c = i - pixel * shape.channels;
        Pack<Element, each> values = {};
#pragma unroll
        for (int j = 0; j < each; ++j) {
            if (i + j < count) values.v[j] = value(c, image[static_cast<int64_t>(c) * plane + pixel]);
            c += 1;
            if (c == shape.channels) {
                c = 0;
                pixel += 1;
            }
        }
        store_pack(out + i, count - i, values);
    }
}

template <class Value>
__device__ __forceinline__ void write_as(const uint8_t* image, const Shape& shape, const Input& input, int64_t slot,
                                         const Value& value) {
    auto* out = static_cast<typename Value::Element*>(input.data) + slot * shape.size();
    if (input.layout == Layout::nchw || shape.channels == 1) {
        write_planar(image, shape, value, out);
    } else {
        write_interleaved(image, shape, value, out);
    }
}

// By all threads of the CTA. What they wrote into `image` before must have been synchronised.
__device__ __forceinline__ void write_input(const uint8_t* image, const Shape& shape, const Input& input,
                                            int64_t slot) {
    switch (input.type) {
        case InputType::uint8:
            return write_as(image, shape, input, slot, SameBytes());
        case InputType::float32:
            return write_as(image, shape, input, slot, TableOf<uint32_t>{input.table});
        case InputType::half:
            return write_as(image, shape, input, slot, TableOf<uint16_t>{input.table});
    }
}

}  // namespace compdx::cuda
