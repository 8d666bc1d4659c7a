// The four operators of a Markov chain search, and the stateless ones, on host memory.
#pragma once

#include "core/apply.h"
#include "core/slots.h"
#include "core/verdicts.h"
#include "cpu/isa.h"

namespace compdx::cpu {

// How to run; what is computed does not depend on it.
struct Execution {
    int threads;
    Isa isa;
};

// Writes each working slot's next query into its buffer and into the models' input.
void mutate(const Rules& rules, const Slots& slots, const Input& input, const Execution& execution);

// Judges the scores float32 [slots.count][classes] of both models.
void judge(const Rules& rules, const Slots& slots, const float* original, const float* compressed, int32_t classes,
           const Execution& execution);

// Moves ended chains, in the order of their slots, into the ring; what does not fit stays parked in its slot.
void harvest(const Rules& rules, const Slots& slots);

// Gives idle slots, in their order, the next seeds of the queue.
void refill(const Slots& slots);

// What lies between two queries: judge, harvest, refill, mutate.
void step(const Rules& rules, const Slots& slots, const Input& input, const float* original, const float* compressed,
          int32_t classes, const Execution& execution);

// One operator on many images.
void apply(const ApplyTask& task, const Execution& execution);

// Images [count] to model inputs.
void normalize(const uint8_t* images, int64_t count, const Shape& shape, const Input& input,
               const Execution& execution);

// What both models say of each image, without chains.
void verdicts(const VerdictTask& task, const Execution& execution);

}  // namespace compdx::cpu
