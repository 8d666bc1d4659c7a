// A stateless use of one operator.
#pragma once

#include "core/rules.h"

namespace compdx {

// One operator on many images, each with its own index and step.
struct ApplyTask {
    Operator op;
    int32_t size;  // negative: drawn; of a blend its weight
    uint64_t seed;
    Shape shape;
    Overflow overflow;
    int32_t linf;
    bool skip_identity;
    int64_t count;
    const uint8_t* images;
    const uint64_t* indices;  // [count]
    const uint32_t* steps;    // [count]
    const uint8_t* origins;   // [count] or [1] images; read only when linf >= 0, and by a blend: the far images
    bool one_origin;
    uint8_t* out;
};

}  // namespace compdx
