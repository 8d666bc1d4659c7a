// The settings of a search in native form: what the arithmetic needs to know, and nothing else.
#pragma once

#include "core/platform.h"

namespace compdx {

enum Operator : uint8_t {
    kAdditive = 0,
    kSaltPepper = 1,
    kMultiplicative = 2,
    kPixel = 3,
    kBox = 4,
    kGaussian = 5,
    kMedian = 6,
    kBlend = 7,  // of the current image and one beyond the boundary; never chosen, and not counted in the statistics
};
constexpr int kOperators = 7;  // that are chosen from

enum class Overflow : int32_t { clip = 0, wrap = 1 };
enum class Selection : int32_t { metropolis = 0, rank = 1, uniform = 2 };
enum class Acceptance : int32_t { margin = 0, improve = 1, change = 2, always = 3, never = 4 };
enum class Coverage : int32_t { hash = 0, nearest = 1 };
enum class Scores : int32_t { logits = 0, probabilities = 1 };

struct Shape {
    int32_t channels;
    int32_t height;
    int32_t width;

    COMPDX_HD int32_t plane() const { return height * width; }
    COMPDX_HD int32_t size() const { return channels * height * width; }
};

struct Rules {
    uint64_t seed = 0;
    Shape shape = {1, 1, 1};
    uint32_t budget = 1000;  // queries a seed, its own included
    Overflow overflow = Overflow::clip;
    int32_t linf = -1;  // bound around the seed image in grey levels; negative: none
    int32_t skip_identity = 0;
    Selection selection = Selection::metropolis;
    Acceptance acceptance = Acceptance::margin;
    uint32_t bisect = 0;  // blends after a mutant beyond the boundary; 0: such a mutant is judged like any other
    Coverage coverage = Coverage::hash;
    uint32_t grid = 20;             // cells per unit of probability (hash)
    uint32_t threshold = 1u << 29;  // squared distance in Q30 (nearest)
    uint32_t capacity = 2048;       // tags (a power of two) or states
    Scores original_scores = Scores::logits;
    Scores compressed_scores = Scores::logits;
};

}  // namespace compdx
