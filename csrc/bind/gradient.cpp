// What a gradient search hands over: images with their limits, and the layers of both models.
#include <pybind11/stl.h>

#include <limits>
#include <string>
#include <tuple>

#include "bind/areas.h"

namespace compdx::bind {
namespace {

// Address and bytes, from one row to the next, strides of a row; in elements.
using RowsArgument = std::tuple<py::tuple, int64_t, std::vector<int64_t>>;
// Extents of a row, the activations of one model or two, the marks (of no bytes for two models).
using LayerArgument = std::tuple<std::vector<int64_t>, std::vector<RowsArgument>, py::tuple>;

[[noreturn]] void refuse(const std::string& expected) { throw std::invalid_argument("layers: expected " + expected); }

// Adds steps * stride to what is reached so far.
void reach(int64_t& reached, int64_t steps, int64_t stride) {
    int64_t distance = 0;
    if (stride < 0 || __builtin_mul_overflow(steps, stride, &distance) ||
        __builtin_add_overflow(reached, distance, &reached) || reached >= std::numeric_limits<int64_t>::max() / 8) {
        refuse("strides that stay within memory");
    }
}

Rows make_rows(const RowsArgument& argument, const Layer& layer, int64_t rows) {
    const auto& [memory, row, strides] = argument;
    if (strides.size() != static_cast<size_t>(layer.axes)) refuse("one stride for each extent");
    Rows result = {};
    result.row = row;
    int64_t reached = 0;
    reach(reached, rows > 0 ? rows - 1 : 0, row);
    for (int64_t axis = 0; axis < layer.axes; ++axis) {
        result.strides[axis] = strides[axis];
        reach(reached, layer.extents[axis] - 1, strides[axis]);
    }
    result.data = view(memory).as<float>(rows > 0 ? reached + 1 : 0, "layers");
    return result;
}

Layer make_layer(const LayerArgument& argument, int64_t first, int64_t rows) {
    const auto& [extents, values, covered] = argument;
    if (extents.empty() || extents.size() > kMaxAxes) refuse("1.." + std::to_string(kMaxAxes) + " extents");
    Layer layer = {};
    layer.first = first;
    layer.count = 1;
    layer.axes = static_cast<int64_t>(extents.size());
    for (int64_t axis = 0; axis < layer.axes; ++axis) {
        if (extents[axis] < 1 || extents[axis] > std::numeric_limits<int32_t>::max() / layer.count) {
            refuse("positive extents and less than 2^31 neurons");
        }
        layer.extents[axis] = static_cast<int32_t>(extents[axis]);
        layer.count *= extents[axis];
    }
    for (size_t model = 0; model < values.size(); ++model) layer.values[model] = make_rows(values[model], layer, rows);
    layer.covered = view(covered).as<uint8_t>(values.size() == 1 ? layer.count : 0, "covered");
    return layer;
}

BoundLayers make_layers(int64_t rows, const std::vector<LayerArgument>& layers) {
    if (rows < 0) throw std::invalid_argument("rows: expected at least 0, got " + std::to_string(rows));
    if (layers.empty() || layers.size() > kMaxLayers) refuse("1.." + std::to_string(kMaxLayers) + " of them");
    BoundLayers bound;
    bound.rows = rows;
    bound.models = std::get<1>(layers[0]).size();
    for (const LayerArgument& argument : layers) {
        const size_t models = std::get<1>(argument).size();
        if (models < 1 || models > 2 || models != bound.models) refuse("the activations of one model or of two");
        bound.layers.push_back(make_layer(argument, bound.neurons, rows));
        bound.neurons += bound.layers.back().count;
    }
    return bound;
}

// Null for a view of nothing.
template <class T>
const T* optional(const View& memory, int64_t count, const char* name) {
    return memory.bytes == 0 ? nullptr : memory.as<T>(count, name);
}

}  // namespace

const Layer* BoundLayers::on_device() const {
    if (placed == nullptr) throw std::invalid_argument("layers: expected a call of place() before a kernel reads them");
    return placed;
}

SelectTask BoundLayers::select(const Layer* at, uint64_t seed, int32_t trials, const View& identities,
                               const View& steps, const View& active, const View& layer, const View& position) const {
    if (models != 2) refuse("the activations of two models");
    if (trials < 0) throw std::invalid_argument("trials: expected at least 0, got " + std::to_string(trials));
    SelectTask task;
    task.seed = seed;
    task.trials = trials;
    task.layers = at;
    task.layer_count = static_cast<int32_t>(layers.size());
    task.count = rows;
    task.identities = identities.as<uint64_t>(rows, "identities");
    task.steps = steps.as<uint32_t>(rows, "steps");
    task.active = optional<uint8_t>(active, rows, "active");
    task.layer = layer.as<int32_t>(rows, "layer");
    task.position = position.as<int64_t>(rows, "position");
    return task;
}

CoverTask BoundLayers::cover(const Layer* at, const View& active) const {
    if (models != 1) refuse("the activations of one model");
    return {at, static_cast<int32_t>(layers.size()), neurons, rows, optional<uint8_t>(active, rows, "active")};
}

DescendTask make_descend_task(const py::tuple& shape, float step, bool project, bool lattice, const View& table,
                              const View& scale, const View& bound, const View& total, int64_t count,
                              const View& active, const View& state, const View& gradient, const View& origin,
                              const View& picture, const View& l2_squared, const View& linf) {
    DescendTask task;
    task.shape = make_shape(shape);
    task.step = step;
    task.project = project;
    task.lattice = lattice;
    const int64_t channels = task.shape.channels;
    const int64_t values = count * task.shape.size();
    task.table = table.as<float>(channels * 256, "table");
    task.scale = scale.as<float>(channels, "scale");
    task.bound = optional<float>(bound, channels, "bound");
    task.total = optional<float>(total, channels, "total");
    task.count = count;
    task.active = optional<uint8_t>(active, count, "active");
    task.state = state.as<float>(values, "state");
    task.gradient = gradient.as<float>(values, "gradient");
    task.origin = origin.as<uint8_t>(values, "origin");
    task.picture = picture.as<uint8_t>(values, "picture");
    task.l2_squared = l2_squared.as<int64_t>(count, "l2_squared");
    task.linf = linf.as<uint8_t>(count, "linf");
    return task;
}

void register_gradient(py::module_& module) {
    py::class_<BoundLayers>(module, "Layers", "The activations of a batch, checked once; the caller owns them.")
        .def(py::init(&make_layers), py::kw_only(), py::arg("rows"), py::arg("layers"))
        .def(
            "to_bytes",
            [](const BoundLayers& bound) {
                return py::bytes(reinterpret_cast<const char*>(bound.layers.data()),
                                 bound.layers.size() * sizeof(Layer));
            },
            "What kernels read: copy it to the device and say where it is.")
        .def(
            "place",
            [](BoundLayers& bound, const py::tuple& memory) {
                bound.placed = view(memory).as<Layer>(static_cast<int64_t>(bound.layers.size()), "memory");
            },
            py::arg("memory"), "Address and bytes of the copy on the device.");
    module.attr("MAX_AXES") = kMaxAxes;
    module.attr("MAX_LAYERS") = kMaxLayers;
}

}  // namespace compdx::bind
