// Parameters of an operator's draw. docs/arithmetic.md section 2; DFlare's seven operators.
#pragma once

#include "core/philox.h"
#include "core/rules.h"

namespace compdx {

// A draw: the operator with everything that is the same for all pixels of the image.
struct Draw {
    Operator op;
    int32_t size;   // blurs: window; pixel: values changed; salt & pepper: specks of each kind; blend: weight
    int32_t mean;   // multiplicative, Q16
    int32_t sigma;  // multiplicative, Q16
};

inline namespace COMPDX_ISA_NAMESPACE {

// Floor of the square root, bit by bit: no float, so no rounding to disagree about.
COMPDX_HD uint32_t integer_sqrt(uint32_t value) {
    uint32_t root = 0;
    for (uint32_t bit = 1u << 30; bit != 0; bit >>= 2) {
        if (value >= root + bit) {
            value -= root + bit;
            root = (root >> 1) + bit;
        } else {
            root >>= 1;
        }
    }
    return root;
}

COMPDX_HD int32_t drawn_size(Operator op, uint32_t word, bool skip_identity, int32_t pixels) {
    switch (op) {
        case kSaltPepper:
            return (pixels + 499) / 500;  // ceil(0.004 * pixels * 0.5)
        case kPixel:
            return static_cast<int32_t>(skip_identity ? 1 + below(word, 9) : below(word, 10));
        case kBox:
            return static_cast<int32_t>(skip_identity ? 2 + below(word, 4) : 1 + below(word, 5));
        case kGaussian:
        case kMedian:
            return static_cast<int32_t>(skip_identity ? 3 + 2 * below(word, 3) : 1 + 2 * below(word, 4));
        default:
            return 0;
    }
}

COMPDX_HD Draw draw_operator(Operator op, const Stream& stream, bool skip_identity, int32_t pixels) {
    const Words words = stream_words(stream, Purpose::parameters, 0);
    Draw draw = {op, drawn_size(op, words.w[0], skip_identity, pixels), 0, 0};
    if (op == kMultiplicative) {
        draw.mean = static_cast<int32_t>(words.w[1] >> 16) - 32768;
        // The variance is uniform in [0, 0.05): sqrt(v / 65536 / 20) in Q16 is the root of v * 65536 / 20.
        draw.sigma = static_cast<int32_t>(integer_sqrt(((words.w[2] >> 16) << 16) / 20));
    }
    return draw;
}

}  // namespace COMPDX_ISA_NAMESPACE
}  // namespace compdx
