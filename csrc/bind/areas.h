// Each area of the bindings registers itself.
#pragma once

#include <pybind11/pybind11.h>

#include "bind/views.h"
#include "core/apply.h"
#include "core/slots.h"

namespace compdx::bind {

void register_settings(py::module_& module);
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

Input make_input(const Shape& shape, int64_t count, const View& data, const View& table, const std::string& type,
                 const std::string& layout);

ApplyTask make_apply_task(const std::string& op, int32_t size, uint64_t seed, const py::tuple& shape,
                          const std::string& overflow, int32_t linf, bool skip_identity, int64_t count,
                          const View& images, const View& indices, const View& steps, const View& origins,
                          int64_t origin_count, const View& out);

Shape make_shape(const py::tuple& shape);

}  // namespace compdx::bind
