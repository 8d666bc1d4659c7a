// Each area of the bindings registers itself.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <vector>

#include "bind/views.h"
#include "core/apply.h"
#include "core/descent.h"
#include "core/neurons.h"
#include "core/slices.h"
#include "core/slots.h"
#include "core/verdicts.h"

namespace compdx::bind {

void register_settings(py::module_& module);
void register_gradient(py::module_& module);
void register_slicing(py::module_& module);
void register_cpu(py::module_& module);
void register_cuda(py::module_& module);

// A Slots whose arrays have been checked against the rules once; holds no memory of its own.
struct BoundSlots {
    Rules rules;
    Slots slots;
    int64_t coverage_bytes;

    // The coverage of `nearest` depends on the number of classes, which is known only when the first scores arrive.
    Slots with_classes(int32_t classes) const;
};

// Layers whose extents have been checked once; holds none of their memory.
struct BoundLayers {
    int64_t rows = 0;
    int64_t neurons = 0;
    size_t models = 0;
    std::vector<Layer> layers;
    const Layer* placed = nullptr;  // the copy on a device, once there is one

    const Layer* on_device() const;
    SelectTask select(const Layer* at, uint64_t seed, int32_t trials, const View& identities, const View& steps,
                      const View& active, const View& layer, const View& position) const;
    CoverTask cover(const Layer* at, const View& active) const;
};

Input make_input(const Shape& shape, int64_t count, const View& data, const View& table, const std::string& type,
                 const std::string& layout);

ApplyTask make_apply_task(const std::string& op, int32_t size, uint64_t seed, const py::tuple& shape,
                          const std::string& overflow, int32_t linf, bool skip_identity, int64_t count,
                          const View& images, const View& indices, const View& steps, const View& origins,
                          int64_t origin_count, const View& out);

VerdictTask make_verdict_task(const View& original, const View& compressed, int64_t count, int32_t classes,
                              const std::string& original_scores, const std::string& compressed_scores,
                              const View& labels, const View& confidences, const View& non_finite);

DescendTask make_descend_task(const py::tuple& shape, float step, bool project, bool lattice, const View& table,
                              const View& scale, const View& bound, const View& total, int64_t count,
                              const View& active, const View& state, const View& gradient, const View& origin,
                              const View& picture, const View& l2_squared, const View& linf);

// A weighted operation: extents as the arrays have them, the steps of its window down and across.
struct Convolution {
    std::array<int64_t, 4> delta, weight;
    std::array<int64_t, 2> output, stride, padding, dilation;
    int64_t groups;
};

SliceTask make_slice_task(const Convolution& convolution, double epsilon, double beta, const View& delta,
                          const View& weight, const View& sign, const View& inputs, const View& signed_sum,
                          const View& absolute, const View& samples);

Shape make_shape(const py::tuple& shape);

}  // namespace compdx::bind
