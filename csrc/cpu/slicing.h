// The contributions of a weighted operation's inputs and weights, on host memory.
#pragma once

#include "core/slices.h"
#include "cpu/search.h"

namespace compdx::cpu {

// Adds the contributions of the selected taps of every neuron whose sign is not 0.
void contributions(const SliceTask& task, const Execution& execution);

}  // namespace compdx::cpu
