// The CPU back end. Every argument is converted and checked first; then the GIL is released around the native work.
#include <string>

#include "bind/areas.h"
#include "core/philox.h"
#include "cpu/gradient.h"
#include "cpu/search.h"
#include "cpu/slicing.h"

namespace compdx::bind {
namespace {

cpu::Execution execution(int threads, const std::string& isa) {
    if (threads < 1) throw std::invalid_argument("threads: expected at least 1, got " + std::to_string(threads));
    if (isa.empty()) return {threads, best_isa()};
    for (int i = 0; i < kIsas; ++i) {
        const auto candidate = static_cast<Isa>(i);
        if (isa == isa_name(candidate)) {
            if (!isa_available(candidate))
                throw std::invalid_argument("isa: " + isa + " is not available on this machine");
            return {threads, candidate};
        }
    }
    throw std::invalid_argument("isa: expected avx512, avx2 or scalar, got " + isa);
}

void mutate(const BoundSlots& bound, const py::tuple& data, const py::tuple& table, const std::string& type,
            const std::string& layout, int threads, const std::string& isa) {
    const Input input = make_input(bound.rules.shape, bound.slots.count, view(data), view(table), type, layout);
    const cpu::Execution how = execution(threads, isa);
    py::gil_scoped_release release;
    cpu::mutate(bound.rules, bound.slots, input, how);
}

void judge(const BoundSlots& bound, const py::tuple& original, const py::tuple& compressed, int32_t classes,
           int threads, const std::string& isa) {
    const Slots slots = bound.with_classes(classes);
    const float* a = view(original).as<float>(slots.count * classes, "original");
    const float* b = view(compressed).as<float>(slots.count * classes, "compressed");
    const cpu::Execution how = execution(threads, isa);
    py::gil_scoped_release release;
    cpu::judge(bound.rules, slots, a, b, classes, how);
}

void harvest(const BoundSlots& bound) {
    py::gil_scoped_release release;
    cpu::harvest(bound.rules, bound.slots);
}

void refill(const BoundSlots& bound) {
    py::gil_scoped_release release;
    cpu::refill(bound.slots);
}

void step(const BoundSlots& bound, const py::tuple& original, const py::tuple& compressed, int32_t classes,
          const py::tuple& data, const py::tuple& table, const std::string& type, const std::string& layout,
          int threads, const std::string& isa) {
    const Slots slots = bound.with_classes(classes);
    const float* a = view(original).as<float>(slots.count * classes, "original");
    const float* b = view(compressed).as<float>(slots.count * classes, "compressed");
    const Input input = make_input(bound.rules.shape, slots.count, view(data), view(table), type, layout);
    const cpu::Execution how = execution(threads, isa);
    py::gil_scoped_release release;
    cpu::step(bound.rules, slots, input, a, b, classes, how);
}

void apply(const std::string& op, int32_t size, uint64_t seed, const py::tuple& shape, const std::string& overflow,
           int32_t linf, bool skip_identity, int64_t count, const py::tuple& images, const py::tuple& indices,
           const py::tuple& steps, const py::tuple& origins, int64_t origin_count, const py::tuple& out, int threads,
           const std::string& isa) {
    const ApplyTask task = make_apply_task(op, size, seed, shape, overflow, linf, skip_identity, count, view(images),
                                           view(indices), view(steps), view(origins), origin_count, view(out));
    const cpu::Execution how = execution(threads, isa);
    py::gil_scoped_release release;
    cpu::apply(task, how);
}

void normalize(const py::tuple& images, int64_t count, const py::tuple& shape, const py::tuple& data,
               const py::tuple& table, const std::string& type, const std::string& layout, int threads,
               const std::string& isa) {
    const Shape extents = make_shape(shape);
    const uint8_t* from = view(images).as<uint8_t>(count * extents.size(), "images");
    const Input input = make_input(extents, count, view(data), view(table), type, layout);
    const cpu::Execution how = execution(threads, isa);
    py::gil_scoped_release release;
    cpu::normalize(from, count, extents, input, how);
}

void verdicts(const py::tuple& original, const py::tuple& compressed, int64_t count, int32_t classes,
              const std::string& original_scores, const std::string& compressed_scores, const py::tuple& labels,
              const py::tuple& confidences, const py::tuple& non_finite, int threads, const std::string& isa) {
    const VerdictTask task = make_verdict_task(view(original), view(compressed), count, classes, original_scores,
                                               compressed_scores, view(labels), view(confidences), view(non_finite));
    const cpu::Execution how = execution(threads, isa);
    py::gil_scoped_release release;
    cpu::verdicts(task, how);
}

void descend(const py::tuple& shape, float step, bool project, bool lattice, const py::tuple& table,
             const py::tuple& scale, const py::tuple& bound, const py::tuple& total, int64_t count,
             const py::tuple& active, const py::tuple& state, const py::tuple& gradient, const py::tuple& origin,
             const py::tuple& picture, const py::tuple& l2_squared, const py::tuple& linf, int threads,
             const std::string& isa) {
    const DescendTask task = make_descend_task(shape, step, project, lattice, view(table), view(scale), view(bound),
                                               view(total), count, view(active), view(state), view(gradient),
                                               view(origin), view(picture), view(l2_squared), view(linf));
    const cpu::Execution how = execution(threads, isa);
    py::gil_scoped_release release;
    cpu::descend(task, how);
}

void select_neurons(const BoundLayers& layers, uint64_t seed, int32_t trials, const py::tuple& identities,
                    const py::tuple& steps, const py::tuple& active, const py::tuple& layer, const py::tuple& position,
                    int threads, const std::string& isa) {
    const SelectTask task = layers.select(layers.layers.data(), seed, trials, view(identities), view(steps),
                                          view(active), view(layer), view(position));
    const cpu::Execution how = execution(threads, isa);
    py::gil_scoped_release release;
    cpu::select_neurons(task, how);
}

void cover(const BoundLayers& layers, const py::tuple& active, int threads, const std::string& isa) {
    const CoverTask task = layers.cover(layers.layers.data(), view(active));
    const cpu::Execution how = execution(threads, isa);
    py::gil_scoped_release release;
    cpu::cover(task, how);
}

void contributions(const Convolution& convolution, double epsilon, double beta, const py::tuple& delta,
                   const py::tuple& weight, const py::tuple& sign, const py::tuple& inputs, const py::tuple& signed_sum,
                   const py::tuple& absolute, const py::tuple& samples, int threads, const std::string& isa) {
    const SliceTask task = make_slice_task(convolution, epsilon, beta, view(delta), view(weight), view(sign),
                                           view(inputs), view(signed_sum), view(absolute), view(samples));
    const cpu::Execution how = execution(threads, isa);
    py::gil_scoped_release release;
    cpu::contributions(task, how);
}

void philox_words(const py::tuple& keys, const py::tuple& counters, const py::tuple& out, int64_t count) {
    const uint32_t* key = view(keys).as<uint32_t>(2 * count, "key");
    const uint32_t* counter = view(counters).as<uint32_t>(4 * count, "counter");
    uint32_t* words = view(out).as<uint32_t>(4 * count, "out");
    for (int64_t i = 0; i < count; ++i) {
        const Words result = philox(key[2 * i], key[2 * i + 1],
                                    {{counter[4 * i], counter[4 * i + 1], counter[4 * i + 2], counter[4 * i + 3]}});
        for (int w = 0; w < 4; ++w) words[4 * i + w] = result.w[w];
    }
}

}  // namespace

void register_cpu(py::module_& module) {
    module.def("cpu_mutate", &mutate, py::arg("slots"), py::kw_only(), py::arg("data"), py::arg("table"),
               py::arg("type"), py::arg("layout"), py::arg("threads"), py::arg("isa"));
    module.def("cpu_judge", &judge, py::arg("slots"), py::kw_only(), py::arg("original"), py::arg("compressed"),
               py::arg("classes"), py::arg("threads"), py::arg("isa"));
    module.def("cpu_harvest", &harvest, py::arg("slots"));
    module.def("cpu_refill", &refill, py::arg("slots"));
    module.def("cpu_step", &step, py::arg("slots"), py::kw_only(), py::arg("original"), py::arg("compressed"),
               py::arg("classes"), py::arg("data"), py::arg("table"), py::arg("type"), py::arg("layout"),
               py::arg("threads"), py::arg("isa"));
    module.def("cpu_apply", &apply, py::kw_only(), py::arg("operator"), py::arg("size"), py::arg("seed"),
               py::arg("shape"), py::arg("overflow"), py::arg("linf"), py::arg("skip_identity"), py::arg("count"),
               py::arg("images"), py::arg("indices"), py::arg("steps"), py::arg("origins"), py::arg("origin_count"),
               py::arg("out"), py::arg("threads"), py::arg("isa"));
    module.def("cpu_normalize", &normalize, py::kw_only(), py::arg("images"), py::arg("count"), py::arg("shape"),
               py::arg("data"), py::arg("table"), py::arg("type"), py::arg("layout"), py::arg("threads"),
               py::arg("isa"));
    module.def("cpu_verdicts", &verdicts, py::kw_only(), py::arg("original"), py::arg("compressed"), py::arg("count"),
               py::arg("classes"), py::arg("original_scores"), py::arg("compressed_scores"), py::arg("labels"),
               py::arg("confidences"), py::arg("non_finite"), py::arg("threads"), py::arg("isa"));
    module.def("cpu_descend", &descend, py::kw_only(), py::arg("shape"), py::arg("step"), py::arg("project"),
               py::arg("lattice"), py::arg("table"), py::arg("scale"), py::arg("bound"), py::arg("total"),
               py::arg("count"), py::arg("active"), py::arg("state"), py::arg("gradient"), py::arg("origin"),
               py::arg("picture"), py::arg("l2_squared"), py::arg("linf"), py::arg("threads"), py::arg("isa"));
    module.def("cpu_select_neurons", &select_neurons, py::arg("layers"), py::kw_only(), py::arg("seed"),
               py::arg("trials"), py::arg("identities"), py::arg("steps"), py::arg("active"), py::arg("layer"),
               py::arg("position"), py::arg("threads"), py::arg("isa"));
    module.def("cpu_cover", &cover, py::arg("layers"), py::kw_only(), py::arg("active"), py::arg("threads"),
               py::arg("isa"));
    module.def("cpu_contributions", &contributions, py::arg("convolution"), py::kw_only(), py::arg("epsilon"),
               py::arg("beta"), py::arg("delta"), py::arg("weight"), py::arg("sign"), py::arg("inputs"),
               py::arg("signed_sum"), py::arg("absolute"), py::arg("samples"), py::arg("threads"), py::arg("isa"));
    module.def("philox", &philox_words, py::kw_only(), py::arg("keys"), py::arg("counters"), py::arg("out"),
               py::arg("count"));
}

}  // namespace compdx::bind
