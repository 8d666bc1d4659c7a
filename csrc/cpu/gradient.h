// The operators of a gradient search, on host memory.
#pragma once

#include "core/descent.h"
#include "core/neurons.h"
#include "cpu/search.h"

namespace compdx::cpu {

// Moves every active image one step against its gradient and draws its picture.
void descend(const DescendTask& task, const Execution& execution);

// Chooses for every active row a neuron that is positive in the original and not in the compressed model.
void select_neurons(const SelectTask& task, const Execution& execution);

// Marks the neurons that are positive in any active row.
void cover(const CoverTask& task, const Execution& execution);

}  // namespace compdx::cpu
