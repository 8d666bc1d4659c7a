// What a slice reads of a weighted operation: extents that fit together and memory that is as large as they say.
#include <pybind11/stl.h>

#include <cmath>
#include <string>

#include "bind/areas.h"

namespace compdx::bind {
namespace {

constexpr int64_t kMaxExtent = int64_t{1} << 28;
constexpr int64_t kMaxElements = (int64_t{1} << 31) - 1;  // of a sample, of a weight

[[noreturn]] void refuse(const std::string& expected) {
    throw std::invalid_argument("convolution: expected " + expected);
}

void check_range(const std::string& name, int64_t value, int64_t low) {
    if (value >= low && value <= kMaxExtent) return;
    refuse(name + " in " + std::to_string(low) + ".." + std::to_string(kMaxExtent) + ", got " + std::to_string(value));
}

int64_t elements(const std::string& name, std::initializer_list<int64_t> extents) {
    int64_t count = 1;
    for (const int64_t extent : extents) {
        check_range(name, extent, 1);
        if (extent > kMaxElements / count) refuse(name + " of less than 2^31 elements");
        count *= extent;
    }
    return count;
}

// Null for a view of nothing.
int32_t* optional(const View& memory, int64_t count, const char* name) {
    return memory.bytes == 0 ? nullptr : memory.as<int32_t>(count, name);
}

}  // namespace

SliceTask make_slice_task(const Convolution& c, double epsilon, double beta, const View& delta, const View& weight,
                          const View& sign, const View& inputs, const View& signed_sum, const View& absolute,
                          const View& samples) {
    const int64_t count = c.delta[0];
    if (count < 0 || count > kMaxElements) refuse("at least 0 samples, less than 2^31");
    const int64_t input = elements("input", {c.delta[1], c.delta[2], c.delta[3]});
    const int64_t kernel = elements("weight", {c.weight[0], c.weight[1], c.weight[2], c.weight[3]});
    const int64_t output = elements("output", {c.weight[0], c.output[0], c.output[1]});
    check_range("groups", c.groups, 1);
    if (c.delta[1] != c.groups * c.weight[1] || c.weight[0] % c.groups != 0) refuse("channels that fit the groups");
    if (kernel / c.weight[0] > kMaxTaps) refuse("at most " + std::to_string(kMaxTaps) + " weights an output channel");
    for (size_t axis = 0; axis < 2; ++axis) {
        check_range("stride", c.stride[axis], 1);
        check_range("padding", c.padding[axis], 0);
        check_range("dilation", c.dilation[axis], 1);
        const int64_t room = c.delta[2 + axis] + 2 * c.padding[axis] - c.dilation[axis] * (c.weight[2 + axis] - 1) - 1;
        if (room < 0 || c.output[axis] != room / c.stride[axis] + 1)
            refuse("an output as large as its windows make it");
    }
    if (!(epsilon > 0) || !std::isfinite(epsilon)) throw std::invalid_argument("epsilon: expected a number above 0");
    if (!(beta >= 0 && beta <= 1)) throw std::invalid_argument("beta: expected a number in 0..1");

    SliceTask task = {};
    const auto narrow = [](int64_t value) { return static_cast<int32_t>(value); };
    task.samples = count;
    task.channels = narrow(c.delta[1]);
    task.height = narrow(c.delta[2]);
    task.width = narrow(c.delta[3]);
    task.outputs = narrow(c.weight[0]);
    task.out_height = narrow(c.output[0]);
    task.out_width = narrow(c.output[1]);
    task.groups = narrow(c.groups);
    task.kernel_height = narrow(c.weight[2]);
    task.kernel_width = narrow(c.weight[3]);
    for (size_t axis = 0; axis < 2; ++axis) {
        task.stride[axis] = narrow(c.stride[axis]);
        task.padding[axis] = narrow(c.padding[axis]);
        task.dilation[axis] = narrow(c.dilation[axis]);
    }
    task.epsilon = epsilon;
    task.share = 1.0 - beta;
    task.delta = delta.as<float>(count * input, "delta");
    task.weight = weight.as<float>(kernel, "weight");
    task.sign = sign.as<int8_t>(count * output, "sign");
    task.inputs = optional(inputs, count * input, "inputs");
    task.signed_sum = optional(signed_sum, kernel, "signed");
    task.absolute = optional(absolute, kernel, "absolute");
    task.per_sample = optional(samples, count * kernel, "samples");
    return task;
}

void register_slicing(py::module_& module) {
    py::class_<Convolution>(module, "Convolution", "A weighted operation: the extents of its arrays and its steps.")
        .def(
            py::init([](const std::array<int64_t, 4>& delta, const std::array<int64_t, 4>& weight,
                        const std::array<int64_t, 2>& output, const std::array<int64_t, 2>& stride,
                        const std::array<int64_t, 2>& padding, const std::array<int64_t, 2>& dilation, int64_t groups) {
                return Convolution{delta, weight, output, stride, padding, dilation, groups};
            }),
            py::kw_only(), py::arg("delta"), py::arg("weight"), py::arg("output"), py::arg("stride"),
            py::arg("padding"), py::arg("dilation"), py::arg("groups"));
    module.attr("MAX_TAPS") = kMaxTaps;
}

}  // namespace compdx::bind
