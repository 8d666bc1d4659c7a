// Rules and slots: names become enums, extents are checked.
#include <initializer_list>
#include <limits>
#include <string>
#include <utility>

#include "bind/areas.h"
#include "core/coverage.h"

namespace compdx::bind {
namespace {

template <class Enum>
Enum parse(const char* what, const std::string& name, std::initializer_list<std::pair<const char*, Enum>> known) {
    std::string allowed;
    for (const auto& [key, value] : known) {
        if (name == key) return value;
        allowed += allowed.empty() ? key : std::string(", ") + key;
    }
    throw std::invalid_argument(std::string(what) + ": expected one of " + allowed + ", got " + name);
}

Overflow parse_overflow(const std::string& name) {
    return parse<Overflow>("overflow", name, {{"clip", Overflow::clip}, {"wrap", Overflow::wrap}});
}

Scores parse_scores(const char* what, const std::string& name) {
    return parse<Scores>(what, name, {{"logits", Scores::logits}, {"probabilities", Scores::probabilities}});
}

Operator parse_operator(const std::string& name) {
    return parse<Operator>("operator", name,
                           {{"additive", kAdditive},
                            {"salt_pepper", kSaltPepper},
                            {"multiplicative", kMultiplicative},
                            {"pixel", kPixel},
                            {"box", kBox},
                            {"gaussian", kGaussian},
                            {"median", kMedian},
                            {"blend", kBlend}});
}

Rules make_rules(uint64_t seed, const py::tuple& shape, uint32_t budget, const std::string& overflow, int32_t linf,
                 bool skip_identity, const std::string& selection, const std::string& acceptance, uint32_t bisect,
                 const std::string& coverage, uint32_t grid, uint32_t threshold_q30, uint32_t capacity,
                 const std::string& original_scores, const std::string& compressed_scores) {
    Rules rules;
    rules.seed = seed;
    rules.shape = make_shape(shape);
    rules.budget = budget;
    rules.overflow = parse_overflow(overflow);
    rules.linf = linf;
    rules.skip_identity = skip_identity;
    rules.selection = parse<Selection>(
        "selection", selection,
        {{"metropolis", Selection::metropolis}, {"rank", Selection::rank}, {"uniform", Selection::uniform}});
    rules.acceptance = parse<Acceptance>("acceptance", acceptance,
                                         {{"margin", Acceptance::margin},
                                          {"improve", Acceptance::improve},
                                          {"change", Acceptance::change},
                                          {"always", Acceptance::always},
                                          {"never", Acceptance::never}});
    rules.bisect = bisect;
    rules.coverage = parse<Coverage>("coverage", coverage, {{"hash", Coverage::hash}, {"nearest", Coverage::nearest}});
    rules.grid = grid;
    rules.threshold = threshold_q30;
    rules.capacity = capacity;
    rules.original_scores = parse_scores("original_scores", original_scores);
    rules.compressed_scores = parse_scores("compressed_scores", compressed_scores);
    if (budget < 1) throw std::invalid_argument("budget: expected at least 1, got 0");
    if (bisect > 255) throw std::invalid_argument("bisect: expected at most 255, got " + std::to_string(bisect));
    if (capacity < 1) throw std::invalid_argument("capacity: expected at least 1, got 0");
    if (rules.coverage == Coverage::hash && (capacity & (capacity - 1)) != 0) {
        throw std::invalid_argument("capacity: expected a power of two, got " + std::to_string(capacity));
    }
    return rules;
}

BoundSlots make_slots(const Rules& rules, int64_t count, int64_t pitch, const py::tuple& chains,
                      const py::tuple& images, const py::tuple& traces, const py::tuple& coverage,
                      const py::tuple& counters, const py::tuple& seeds, const py::tuple& identities,
                      int64_t seed_count, const py::tuple& queue, int64_t queue_length, int64_t ring_capacity,
                      const py::tuple& ring_chains, const py::tuple& ring_images, const py::tuple& ring_traces) {
    const int64_t pixels = rules.shape.size();
    const int64_t budget = rules.budget;
    if (count < 1) throw std::invalid_argument("count: expected at least 1 slot, got " + std::to_string(count));
    if (pitch < pixels) throw std::invalid_argument("pitch: smaller than an image");
    if (seed_count > std::numeric_limits<int32_t>::max())
        throw std::invalid_argument("seeds: expected less than 2^31 images");
    if (ring_capacity < 1) throw std::invalid_argument("ring_capacity: expected at least 1");
    BoundSlots bound;
    bound.rules = rules;
    bound.coverage_bytes = view(coverage).bytes;
    Slots& slots = bound.slots;
    slots.count = count;
    slots.pitch = pitch;
    slots.chains = view(chains).as<Chain>(count, "chains");
    slots.images = view(images).as<uint8_t>(buffers_of(rules) * count * pitch, "images");
    slots.traces = view(traces).as<uint8_t>(count * budget, "traces");
    slots.coverage = view(coverage).as<uint32_t>(
        rules.coverage == Coverage::hash ? count * table_words(rules.capacity) : 0, "coverage");
    slots.counters = view(counters).as<Counters>(1, "counters");
    slots.seeds = view(seeds).as<uint8_t>(seed_count * pixels, "seeds");
    slots.identities = view(identities).as<uint64_t>(seed_count, "identities");
    slots.seed_count = seed_count;
    slots.queue = view(queue).as<int64_t>(queue_length, "queue");
    slots.queue_length = queue_length;
    slots.ring_capacity = ring_capacity;
    slots.ring_chains = view(ring_chains).as<Chain>(ring_capacity, "ring_chains");
    slots.ring_images = view(ring_images).as<uint8_t>(ring_capacity * pixels, "ring_images");
    slots.ring_traces = view(ring_traces).as<uint8_t>(ring_capacity * budget, "ring_traces");
    return bound;
}

}  // namespace

Shape make_shape(const py::tuple& shape) {
    const Shape result = {shape[0].cast<int32_t>(), shape[1].cast<int32_t>(), shape[2].cast<int32_t>()};
    const int64_t pixels = static_cast<int64_t>(result.channels) * result.height * result.width;
    if (result.channels < 1 || result.height < 1 || result.width < 1 || pixels > (1 << 28)) {
        throw std::invalid_argument("shape: expected positive extents and at most 2^28 values an image");
    }
    return result;
}

Slots BoundSlots::with_classes(int32_t classes) const {
    if (classes < 2) throw std::invalid_argument("scores: expected at least 2 classes, got " + std::to_string(classes));
    if (rules.coverage == Coverage::nearest) {
        const int64_t wanted = slots.count * static_cast<int64_t>(rules.capacity) * 2 * classes * 2;
        if (coverage_bytes < wanted) {
            throw std::invalid_argument("coverage: expected at least " + std::to_string(wanted) + " bytes, got " +
                                        std::to_string(coverage_bytes));
        }
    }
    return slots;
}

Input make_input(const Shape& shape, int64_t count, const View& data, const View& table, const std::string& type,
                 const std::string& layout) {
    Input input;
    input.type = parse<InputType>(
        "type", type, {{"uint8", InputType::uint8}, {"float32", InputType::float32}, {"half", InputType::half}});
    input.layout = parse<Layout>("layout", layout, {{"NCHW", Layout::nchw}, {"NHWC", Layout::nhwc}});
    const int64_t values = count * shape.size();
    const int64_t entries = static_cast<int64_t>(shape.channels) * 256;
    switch (input.type) {
        case InputType::uint8:
            input.data = data.as<uint8_t>(values, "input");
            input.table = nullptr;
            break;
        case InputType::float32:
            input.data = data.as<float>(values, "input");
            input.table = table.as<float>(entries, "table");
            break;
        case InputType::half:
            input.data = data.as<uint16_t>(values, "input");
            input.table = table.as<uint16_t>(entries, "table");
            break;
    }
    return input;
}

ApplyTask make_apply_task(const std::string& op, int32_t size, uint64_t seed, const py::tuple& shape,
                          const std::string& overflow, int32_t linf, bool skip_identity, int64_t count,
                          const View& images, const View& indices, const View& steps, const View& origins,
                          int64_t origin_count, const View& out) {
    ApplyTask task;
    task.op = parse_operator(op);
    task.size = size;
    task.seed = seed;
    task.shape = make_shape(shape);
    task.overflow = parse_overflow(overflow);
    task.linf = linf;
    task.skip_identity = skip_identity;
    task.count = count;
    const int64_t pixels = task.shape.size();
    task.images = images.as<uint8_t>(count * pixels, "images");
    task.indices = indices.as<uint64_t>(count, "index");
    task.steps = steps.as<uint32_t>(count, "step");
    task.one_origin = origin_count == 1;
    if ((linf >= 0 || task.op == kBlend) && origin_count != 1 && origin_count != count) {
        throw std::invalid_argument("origin: expected 1 or " + std::to_string(count) + " images");
    }
    const bool with_origins = linf >= 0 || task.op == kBlend;
    task.origins = origins.as<uint8_t>(with_origins ? origin_count * pixels : 0, "origin");
    task.out = out.as<uint8_t>(count * pixels, "out");
    return task;
}

VerdictTask make_verdict_task(const View& original, const View& compressed, int64_t count, int32_t classes,
                              const std::string& original_scores, const std::string& compressed_scores,
                              const View& labels, const View& confidences, const View& non_finite) {
    if (classes < 2) throw std::invalid_argument("scores: expected at least 2 classes, got " + std::to_string(classes));
    return {original.as<float>(count * classes, "original"),
            compressed.as<float>(count * classes, "compressed"),
            count,
            classes,
            parse_scores("original_scores", original_scores),
            parse_scores("compressed_scores", compressed_scores),
            labels.as<int32_t>(2 * count, "labels"),
            confidences.as<uint32_t>(2 * count, "confidences"),
            non_finite.as<uint8_t>(count, "non_finite")};
}

void register_settings(py::module_& module) {
    py::class_<Rules>(module, "Rules", "Settings of a search in native form.")
        .def(py::init(&make_rules), py::kw_only(), py::arg("seed"), py::arg("shape"), py::arg("budget"),
             py::arg("overflow"), py::arg("linf"), py::arg("skip_identity"), py::arg("selection"),
             py::arg("acceptance"), py::arg("bisect"), py::arg("coverage"), py::arg("grid"), py::arg("threshold_q30"),
             py::arg("capacity"), py::arg("original_scores"), py::arg("compressed_scores"));
    py::class_<BoundSlots>(module, "Slots", "The arrays of a search, checked once; the caller owns them.")
        .def(py::init(&make_slots), py::kw_only(), py::arg("rules"), py::arg("count"), py::arg("pitch"),
             py::arg("chains"), py::arg("images"), py::arg("traces"), py::arg("coverage"), py::arg("counters"),
             py::arg("seeds"), py::arg("identities"), py::arg("seed_count"), py::arg("queue"), py::arg("queue_length"),
             py::arg("ring_capacity"), py::arg("ring_chains"), py::arg("ring_images"), py::arg("ring_traces"));
    module.attr("CHAIN_BYTES") = sizeof(Chain);
    module.attr("COUNTER_BYTES") = sizeof(Counters);
}

}  // namespace compdx::bind
