// The CUDA back end. Launches are asynchronous on the caller's stream, but block when the launch queue is full: the GIL is released.
#include <string>

#include "bind/areas.h"
#include "cuda/launch.h"

namespace compdx::bind {
namespace {

void* stream_of(uintptr_t stream) { return reinterpret_cast<void*>(stream); }

void mutate(const BoundSlots& bound, const py::tuple& data, const py::tuple& table, const std::string& type,
            const std::string& layout, uintptr_t stream) {
    const Input input = make_input(bound.rules.shape, bound.slots.count, view(data), view(table), type, layout);
    py::gil_scoped_release release;
    cuda::mutate(bound.rules, bound.slots, input, stream_of(stream));
}

void judge(const BoundSlots& bound, const py::tuple& original, const py::tuple& compressed, int32_t classes,
           uintptr_t stream) {
    const Slots slots = bound.with_classes(classes);
    const float* a = view(original).as<float>(slots.count * classes, "original");
    const float* b = view(compressed).as<float>(slots.count * classes, "compressed");
    py::gil_scoped_release release;
    cuda::judge(bound.rules, slots, a, b, classes, stream_of(stream));
}

void harvest(const BoundSlots& bound, int64_t consumed, uintptr_t stream) {
    py::gil_scoped_release release;
    cuda::harvest(bound.rules, bound.slots, consumed, stream_of(stream));
}

void refill(const BoundSlots& bound, uintptr_t stream) {
    py::gil_scoped_release release;
    cuda::refill(bound.rules, bound.slots, stream_of(stream));
}

void apply(const std::string& op, int32_t size, uint64_t seed, const py::tuple& shape, const std::string& overflow,
           int32_t linf, bool skip_identity, int64_t count, const py::tuple& images, const py::tuple& indices,
           const py::tuple& steps, const py::tuple& origins, int64_t origin_count, const py::tuple& out,
           uintptr_t stream) {
    const ApplyTask task = make_apply_task(op, size, seed, shape, overflow, linf, skip_identity, count, view(images),
                                           view(indices), view(steps), view(origins), origin_count, view(out));
    py::gil_scoped_release release;
    cuda::apply(task, stream_of(stream));
}

void normalize(const py::tuple& images, int64_t count, const py::tuple& shape, const py::tuple& data,
               const py::tuple& table, const std::string& type, const std::string& layout, uintptr_t stream) {
    const Shape extents = make_shape(shape);
    const uint8_t* from = view(images).as<uint8_t>(count * extents.size(), "images");
    const Input input = make_input(extents, count, view(data), view(table), type, layout);
    py::gil_scoped_release release;
    cuda::normalize(from, count, extents, input, stream_of(stream));
}

}  // namespace

void register_cuda(py::module_& module) {
    module.def("cuda_device_count", &cuda::device_count);
    module.def("cuda_mutate", &mutate, py::arg("slots"), py::kw_only(), py::arg("data"), py::arg("table"),
               py::arg("type"), py::arg("layout"), py::arg("stream"));
    module.def("cuda_judge", &judge, py::arg("slots"), py::kw_only(), py::arg("original"), py::arg("compressed"),
               py::arg("classes"), py::arg("stream"));
    module.def("cuda_harvest", &harvest, py::arg("slots"), py::kw_only(), py::arg("consumed"), py::arg("stream"));
    module.def("cuda_refill", &refill, py::arg("slots"), py::kw_only(), py::arg("stream"));
    module.def("cuda_apply", &apply, py::kw_only(), py::arg("operator"), py::arg("size"), py::arg("seed"),
               py::arg("shape"), py::arg("overflow"), py::arg("linf"), py::arg("skip_identity"), py::arg("count"),
               py::arg("images"), py::arg("indices"), py::arg("steps"), py::arg("origins"), py::arg("origin_count"),
               py::arg("out"), py::arg("stream"));
    module.def("cuda_normalize", &normalize, py::kw_only(), py::arg("images"), py::arg("count"), py::arg("shape"),
               py::arg("data"), py::arg("table"), py::arg("type"), py::arg("layout"), py::arg("stream"));
}

}  // namespace compdx::bind
