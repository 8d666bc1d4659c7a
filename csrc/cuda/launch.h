// What the CUDA back end offers to the bindings: one launcher for each kernel. Everything is asynchronous on the given stream; nothing
// allocates or synchronises. Pointers are device pointers. A failed launch throws std::runtime_error. No CUDA header is needed here.
#pragma once

#include "core/apply.h"
#include "core/descent.h"
#include "core/neurons.h"
#include "core/slices.h"
#include "core/slots.h"
#include "core/verdicts.h"

namespace compdx::cuda {

int device_count();  // 0 when there is no driver

void mutate(const Rules& rules, const Slots& slots, const Input& input, void* stream);
void judge(const Rules& rules, const Slots& slots, const float* original, const float* compressed, int32_t classes,
           void* stream);
void harvest(const Rules& rules, const Slots& slots, void* stream);
void refill(const Slots& slots, void* stream);

// What lies between two queries, judge, harvest, refill and mutate: in one kernel for images of up to 16 kB with coverage `hash`, else
// in theirs. `threads` (32, 128, 512) is the size of a chain's group in that one kernel; 0 chooses by image size and number of slots.
// The one kernel gives slots and places of the ring to whoever comes first, the others in the order of the slots.
void step(const Rules& rules, const Slots& slots, const Input& input, const float* original, const float* compressed,
          int32_t classes, int threads, void* stream);

void apply(const ApplyTask& task, void* stream);
void normalize(const uint8_t* images, int64_t count, const Shape& shape, const Input& input, void* stream);
void verdicts(const VerdictTask& task, void* stream);

void descend(const DescendTask& task, void* stream);
void select_neurons(const SelectTask& task, void* stream);  // the layers' records are on the device too
void cover(const CoverTask& task, void* stream);

void contributions(const SliceTask& task, void* stream);

}  // namespace compdx::cuda
