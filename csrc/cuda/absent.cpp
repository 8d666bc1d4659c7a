// Stands in for the CUDA back end in a build without nvcc: no device, and every launcher says why.
#include <stdexcept>

#include "cuda/launch.h"

namespace compdx::cuda {
namespace {

[[noreturn]] void absent() {
    throw std::runtime_error("this build of compdx has no CUDA kernels; build it with nvcc on the PATH");
}

}  // namespace

int device_count() { return 0; }

void mutate(const Rules&, const Slots&, const Input&, void*) { absent(); }
void judge(const Rules&, const Slots&, const float*, const float*, int32_t, void*) { absent(); }
void harvest(const Rules&, const Slots&, void*) { absent(); }
void refill(const Slots&, void*) { absent(); }
void step(const Rules&, const Slots&, const Input&, const float*, const float*, int32_t, int, void*) { absent(); }
void apply(const ApplyTask&, void*) { absent(); }
void normalize(const uint8_t*, int64_t, const Shape&, const Input&, void*) { absent(); }
void verdicts(const VerdictTask&, void*) { absent(); }
void descend(const DescendTask&, void*) { absent(); }
void select_neurons(const SelectTask&, void*) { absent(); }
void cover(const CoverTask&, void*) { absent(); }
void contributions(const SliceTask&, void*) { absent(); }

}  // namespace compdx::cuda
