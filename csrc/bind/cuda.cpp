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

void harvest(const BoundSlots& bound, uintptr_t stream) {
    py::gil_scoped_release release;
    cuda::harvest(bound.rules, bound.slots, stream_of(stream));
}

void refill(const BoundSlots& bound, uintptr_t stream) {
    py::gil_scoped_release release;
    cuda::refill(bound.slots, stream_of(stream));
}

void step(const BoundSlots& bound, const py::tuple& original, const py::tuple& compressed, int32_t classes,
          const py::tuple& data, const py::tuple& table, const std::string& type, const std::string& layout,
          int threads, uintptr_t stream) {
    const Slots slots = bound.with_classes(classes);
    const float* a = view(original).as<float>(slots.count * classes, "original");
    const float* b = view(compressed).as<float>(slots.count * classes, "compressed");
    const Input input = make_input(bound.rules.shape, slots.count, view(data), view(table), type, layout);
    if (threads != 0 && threads != 32 && threads != 128 && threads != 512) {
        throw std::invalid_argument("threads: expected 0, 32, 128 or 512, got " + std::to_string(threads));
    }
    py::gil_scoped_release release;
    cuda::step(bound.rules, slots, input, a, b, classes, threads, stream_of(stream));
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

void verdicts(const py::tuple& original, const py::tuple& compressed, int64_t count, int32_t classes,
              const std::string& original_scores, const std::string& compressed_scores, const py::tuple& labels,
              const py::tuple& confidences, const py::tuple& non_finite, uintptr_t stream) {
    const VerdictTask task = make_verdict_task(view(original), view(compressed), count, classes, original_scores,
                                               compressed_scores, view(labels), view(confidences), view(non_finite));
    py::gil_scoped_release release;
    cuda::verdicts(task, stream_of(stream));
}

void descend(const py::tuple& shape, float step, bool project, bool lattice, const py::tuple& table,
             const py::tuple& scale, const py::tuple& bound, const py::tuple& total, int64_t count,
             const py::tuple& active, const py::tuple& state, const py::tuple& gradient, const py::tuple& origin,
             const py::tuple& picture, const py::tuple& l2_squared, const py::tuple& linf, uintptr_t stream) {
    const DescendTask task = make_descend_task(shape, step, project, lattice, view(table), view(scale), view(bound),
                                               view(total), count, view(active), view(state), view(gradient),
                                               view(origin), view(picture), view(l2_squared), view(linf));
    py::gil_scoped_release release;
    cuda::descend(task, stream_of(stream));
}

void select_neurons(const BoundLayers& layers, uint64_t seed, int32_t trials, const py::tuple& identities,
                    const py::tuple& steps, const py::tuple& active, const py::tuple& layer, const py::tuple& position,
                    uintptr_t stream) {
    const SelectTask task = layers.select(layers.on_device(), seed, trials, view(identities), view(steps), view(active),
                                          view(layer), view(position));
    py::gil_scoped_release release;
    cuda::select_neurons(task, stream_of(stream));
}

void cover(const BoundLayers& layers, const py::tuple& active, uintptr_t stream) {
    const CoverTask task = layers.cover(layers.on_device(), view(active));
    py::gil_scoped_release release;
    cuda::cover(task, stream_of(stream));
}

void contributions(const Convolution& convolution, double epsilon, double beta, const py::tuple& delta,
                   const py::tuple& weight, const py::tuple& sign, const py::tuple& inputs, const py::tuple& signed_sum,
                   const py::tuple& absolute, const py::tuple& samples, uintptr_t stream) {
    const SliceTask task = make_slice_task(convolution, epsilon, beta, view(delta), view(weight), view(sign),
                                           view(inputs), view(signed_sum), view(absolute), view(samples));
    py::gil_scoped_release release;
    cuda::contributions(task, stream_of(stream));
}

}  // namespace

void register_cuda(py::module_& module) {
    module.def("cuda_device_count", &cuda::device_count);
    module.def("cuda_mutate", &mutate, py::arg("slots"), py::kw_only(), py::arg("data"), py::arg("table"),
               py::arg("type"), py::arg("layout"), py::arg("stream"));
    module.def("cuda_judge", &judge, py::arg("slots"), py::kw_only(), py::arg("original"), py::arg("compressed"),
               py::arg("classes"), py::arg("stream"));
    module.def("cuda_harvest", &harvest, py::arg("slots"), py::kw_only(), py::arg("stream"));
    module.def("cuda_refill", &refill, py::arg("slots"), py::kw_only(), py::arg("stream"));
    module.def("cuda_step", &step, py::arg("slots"), py::kw_only(), py::arg("original"), py::arg("compressed"),
               py::arg("classes"), py::arg("data"), py::arg("table"), py::arg("type"), py::arg("layout"),
               py::arg("threads") = 0, py::arg("stream"));
    module.def("cuda_apply", &apply, py::kw_only(), py::arg("operator"), py::arg("size"), py::arg("seed"),
               py::arg("shape"), py::arg("overflow"), py::arg("linf"), py::arg("skip_identity"), py::arg("count"),
               py::arg("images"), py::arg("indices"), py::arg("steps"), py::arg("origins"), py::arg("origin_count"),
               py::arg("out"), py::arg("stream"));
    module.def("cuda_normalize", &normalize, py::kw_only(), py::arg("images"), py::arg("count"), py::arg("shape"),
               py::arg("data"), py::arg("table"), py::arg("type"), py::arg("layout"), py::arg("stream"));
    module.def("cuda_verdicts", &verdicts, py::kw_only(), py::arg("original"), py::arg("compressed"), py::arg("count"),
               py::arg("classes"), py::arg("original_scores"), py::arg("compressed_scores"), py::arg("labels"),
               py::arg("confidences"), py::arg("non_finite"), py::arg("stream"));
    module.def("cuda_descend", &descend, py::kw_only(), py::arg("shape"), py::arg("step"), py::arg("project"),
               py::arg("lattice"), py::arg("table"), py::arg("scale"), py::arg("bound"), py::arg("total"),
               py::arg("count"), py::arg("active"), py::arg("state"), py::arg("gradient"), py::arg("origin"),
               py::arg("picture"), py::arg("l2_squared"), py::arg("linf"), py::arg("stream"));
    module.def("cuda_select_neurons", &select_neurons, py::arg("layers"), py::kw_only(), py::arg("seed"),
               py::arg("trials"), py::arg("identities"), py::arg("steps"), py::arg("active"), py::arg("layer"),
               py::arg("position"), py::arg("stream"));
    module.def("cuda_cover", &cover, py::arg("layers"), py::kw_only(), py::arg("active"), py::arg("stream"));
    module.def("cuda_contributions", &contributions, py::arg("convolution"), py::kw_only(), py::arg("epsilon"),
               py::arg("beta"), py::arg("delta"), py::arg("weight"), py::arg("sign"), py::arg("inputs"),
               py::arg("signed_sum"), py::arg("absolute"), py::arg("samples"), py::arg("stream"));
}

}  // namespace compdx::bind
