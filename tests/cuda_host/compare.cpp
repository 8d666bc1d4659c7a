// The CUDA kernels, run by the emulator, against the CPU back end: every byte that either may write, after every step of random searches.
// Prints what was compared; the exit status tells whether all of it was equal.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/coverage.h"
#include "core/networks.h"
#include "cpu/gradient.h"
#include "cpu/loops.h"
#include "cpu/search.h"
#include "cpu/slicing.h"
#include "cuda/launch.h"
#include "cuda_runtime.h"

namespace compdx {

// The test needs one instruction set; isa.cpp would ask for all of them.
const Loops& loops(Isa) { return compiled_for::scalar::loops(); }

namespace {

const cpu::Execution kOneThread = {1, Isa::scalar};
constexpr size_t kGuard = 64;  // bytes behind each array that nobody may touch

std::mt19937_64 generator(20240229);
uint64_t random_below(uint64_t n) { return generator() % n; }

template <class T>
struct Array {
    explicit Array(size_t count = 0) : count(count), memory(count * sizeof(T) + kGuard, 0xee) {
        for (size_t i = 0; i < count; ++i) data()[i] = T();
    }
    T* data() { return reinterpret_cast<T*>(memory.data()); }
    void fill_randomly() {
        for (size_t i = 0; i < count * sizeof(T); ++i) memory[i] = static_cast<uint8_t>(generator());
    }
    size_t count;
    std::vector<uint8_t> memory;
};

struct Settings {
    Rules rules;
    Input input;
    int64_t chains;
    int64_t pitch;
    int64_t seeds;
    int64_t ring;
    int32_t classes;
};

// A search with all its memory, so that a copy of it is a second search in the same state.
struct Search {
    Settings settings;
    Array<Chain> chains;
    Array<uint8_t> images, traces, coverage, seeds, ring_images, ring_traces, input, table;
    Array<Counters> counters;
    Array<uint64_t> identities;
    Array<int64_t> queue;
    Array<Chain> ring_chains;

    explicit Search(const Settings& s) : settings(s) {
        const size_t pixels = s.rules.shape.size();
        const size_t element = s.input.element_size();
        chains = Array<Chain>(s.chains);
        images = Array<uint8_t>(buffers_of(s.rules) * s.chains * s.pitch);
        traces = Array<uint8_t>(s.chains * s.rules.budget);
        const size_t states = s.rules.capacity * 2 * s.classes * sizeof(uint16_t);
        const bool tags = s.rules.coverage == Coverage::hash;
        coverage = Array<uint8_t>(s.chains * (tags ? table_words(s.rules.capacity) * sizeof(uint32_t) : states));
        coverage.fill_randomly();  // what a table held before its chain must not matter
        seeds = Array<uint8_t>(s.seeds * pixels);
        seeds.fill_randomly();
        counters = Array<Counters>(1);
        identities = Array<uint64_t>(s.seeds);
        queue = Array<int64_t>(s.seeds);
        for (int64_t i = 0; i < s.seeds; ++i) {
            identities.data()[i] = random_below(1ull << 56);
            queue.data()[i] = s.seeds - 1 - i;
        }
        ring_chains = Array<Chain>(s.ring);
        ring_images = Array<uint8_t>(s.ring * pixels);
        ring_traces = Array<uint8_t>(s.ring * s.rules.budget);
        input = Array<uint8_t>(s.chains * pixels * element);
        table = Array<uint8_t>(s.rules.shape.channels * 256 * element);
        table.fill_randomly();
    }

    Slots slots() {
        return {settings.chains,   settings.pitch,     chains.data(),      images.data(),
                traces.data(),     coverage.data(),    counters.data(),    seeds.data(),
                identities.data(), settings.seeds,     queue.data(),       settings.seeds,
                settings.ring,     ring_chains.data(), ring_images.data(), ring_traces.data()};
    }

    Input model_input() {
        Input result = settings.input;
        result.data = input.data();
        result.table = settings.input.type == InputType::uint8 ? nullptr : table.data();
        return result;
    }
};

int differences = 0;
int64_t bytes_compared = 0;

template <class T>
void compare(const char* what, const char* array, const Array<T>& cpu, const Array<T>& cuda) {
    bytes_compared += cpu.memory.size();
    if (cpu.memory == cuda.memory) return;
    for (size_t i = 0; i < cpu.memory.size(); ++i) {
        if (cpu.memory[i] == cuda.memory[i]) continue;
        std::printf("%s: %s differ at byte %zu of %zu (element %zu): CPU %d, CUDA %d\n", what, array, i,
                    cpu.memory.size() - kGuard, i / sizeof(T), cpu.memory[i], cuda.memory[i]);
        differences += 1;
        return;
    }
}

void compare(const std::string& step, const Search& cpu, const Search& cuda) {
    const char* what = step.c_str();
    compare(what, "chains", cpu.chains, cuda.chains);
    compare(what, "images", cpu.images, cuda.images);
    compare(what, "traces", cpu.traces, cuda.traces);
    compare(what, "coverage", cpu.coverage, cuda.coverage);
    compare(what, "counters", cpu.counters, cuda.counters);
    compare(what, "ring_chains", cpu.ring_chains, cuda.ring_chains);
    compare(what, "ring_images", cpu.ring_images, cuda.ring_images);
    compare(what, "ring_traces", cpu.ring_traces, cuda.ring_traces);
    compare(what, "input", cpu.input, cuda.input);
}

// Scores that now and then deviate, tie, sink below the range of exp, or are not numbers.
void draw_row(std::mt19937_64& random, Scores kind, int32_t classes, const float* like, float* row) {
    const auto below = [&random](uint64_t n) { return random() % n; };
    for (int32_t k = 0; k < classes; ++k) {
        const double u = static_cast<double>(below(1 << 24)) / (1 << 24);
        row[k] = static_cast<float>(kind == Scores::logits ? 12 * u - 6 : u);
        if (like != nullptr && below(40) != 0) row[k] = like[k] * 0.999f;
    }
    if (like == nullptr && below(4) != 0) row[below(classes)] = kind == Scores::logits ? 25.0f : 1.0f;
    if (below(30) == 0) row[below(classes)] = row[below(classes)];
    if (below(60) == 0) row[below(classes)] = below(2) != 0 ? NAN : -INFINITY;
    if (below(10) == 0) std::fill(row, row + classes, below(2) != 0 ? 0.0f : -0.0f);
}

void draw_scores(const Settings& s, Scores kind, std::vector<float>& scores, const std::vector<float>* like) {
    scores.resize(s.chains * s.classes);
    for (int64_t at = 0; at < s.chains * s.classes; at += s.classes) {
        draw_row(generator, kind, s.classes, like == nullptr ? nullptr : like->data() + at, scores.data() + at);
    }
}

void search(const Settings& settings, int iterations, const std::string& name) {
    Search cpu(settings);
    Search cuda = cpu;
    std::vector<float> original, compressed;
    const Rules& rules = settings.rules;
    int64_t kinds[5] = {};
    for (int i = 0; i < iterations && differences == 0; ++i) {
        emulator::set_order(static_cast<emulator::Order>(i % 3));
        const std::string step = name + ", iteration " + std::to_string(i) + ", ";
        cpu::refill(cpu.slots());
        cuda::refill(cuda.slots(), nullptr);
        compare(step + "refill", cpu, cuda);
        cpu::mutate(rules, cpu.slots(), cpu.model_input(), kOneThread);
        cuda::mutate(rules, cuda.slots(), cuda.model_input(), nullptr);
        compare(step + "mutate", cpu, cuda);
        draw_scores(settings, rules.original_scores, original, nullptr);
        draw_scores(settings, rules.compressed_scores, compressed,
                    rules.original_scores == rules.compressed_scores ? &original : nullptr);
        cpu::judge(rules, cpu.slots(), original.data(), compressed.data(), settings.classes, kOneThread);
        cuda::judge(rules, cuda.slots(), original.data(), compressed.data(), settings.classes, nullptr);
        compare(step + "judge", cpu, cuda);
        cpu::harvest(rules, cpu.slots());
        cuda::harvest(rules, cuda.slots(), nullptr);
        compare(step + "harvest", cpu, cuda);
        // At times the reader is late, and ended chains have to wait.
        if (i % 4 == 1) continue;
        const Counters& counters = *cpu.counters.data();
        for (int64_t r = counters.consumed; r < counters.ended; ++r)
            kinds[static_cast<int>(cpu.ring_chains.data()[r % settings.ring].kind)] += 1;
        for (Search* search : {&cpu, &cuda}) search->counters.data()->consumed = counters.ended;
    }
    std::printf("%s: effective %ld, invalid %ld, seed %ld, non-finite %ld, exhausted %ld\n", name.c_str(),
                static_cast<long>(kinds[0]), static_cast<long>(kinds[1]), static_cast<long>(kinds[2]),
                static_cast<long>(kinds[3]), static_cast<long>(kinds[4]));
}

void searches() {
    const Shape shapes[] = {{1, 28, 28}, {3, 32, 32}, {2, 5, 3}, {1, 1, 1}, {3, 37, 70}};
    const int32_t classes[] = {10, 2, 10, 33, 5};
    int number = 0;
    for (size_t i = 0; i < std::size(shapes); ++i) {
        for (int variant = 0; variant < 6; ++variant, ++number) {
            Settings s = {};
            s.rules.seed = generator();
            s.rules.shape = shapes[i];
            s.rules.budget = variant == 5 ? 1 : 12;
            s.rules.overflow = static_cast<Overflow>(variant % 2);
            s.rules.linf = variant % 3 == 2 ? 20 : -1;
            s.rules.skip_identity = variant == 3;
            s.rules.selection = static_cast<Selection>(variant % 3);
            s.rules.acceptance = static_cast<Acceptance>(number % 4);
            s.rules.bisect = number % 2 == 0 ? 0 : 1 + number % 4;
            s.rules.coverage = static_cast<Coverage>(variant % 2);
            s.rules.grid = 10;
            s.rules.threshold = 1u << 24;
            s.rules.capacity = s.rules.coverage == Coverage::hash ? 4u << variant : 3;
            s.rules.original_scores = static_cast<Scores>(number / 2 % 2);
            s.rules.compressed_scores = static_cast<Scores>(number / 3 % 2);
            s.input.type = static_cast<InputType>(variant % 3);
            s.input.layout = static_cast<Layout>(variant / 3);
            s.chains = shapes[i].size() < 100 ? 70 : 9;
            s.pitch = (shapes[i].size() + 15) / 16 * 16 + (variant == 4 ? 1 : 0);  // 1: images that are not aligned
            s.seeds = 3 * s.chains;
            s.ring = s.chains / 2 + 1;
            s.classes = classes[i];
            search(s, 20, "search " + std::to_string(number));
        }
    }
}

// ---- the four steps in one kernel ---------------------------------------------------------------------------------------------------

// Scores of each working chain's query, which depend on the chain and its step alone: the kernel may have put it into another slot.
void score_queries(Search& search, std::vector<float>& original, std::vector<float>& compressed) {
    const Settings& s = search.settings;
    original.assign(s.chains * s.classes, NAN);
    compressed.assign(s.chains * s.classes, NAN);
    for (int64_t slot = 0; slot < s.chains; ++slot) {
        const Chain& chain = search.chains.data()[slot];
        if (!is_working(chain.status)) continue;
        std::mt19937_64 random(chain.seed_index * 1000003 + chain.step +
                               (chain.status == Status::fresh ? 1u << 31 : 0));
        float* a = original.data() + slot * s.classes;
        const bool alike = s.rules.original_scores == s.rules.compressed_scores;
        draw_row(random, s.rules.original_scores, s.classes, nullptr, a);
        draw_row(random, s.rules.compressed_scores, s.classes, alike ? a : nullptr,
                 compressed.data() + slot * s.classes);
    }
}

using Bytes = std::vector<uint8_t>;
using ByIdentity = std::map<uint64_t, Bytes>;

void append(Bytes& bytes, const void* from, size_t count) {
    const auto* begin = static_cast<const uint8_t*>(from);
    bytes.insert(bytes.end(), begin, begin + count);
}

// All that belongs to the chains at work: record, trace, images as far as they count, set of states, the models' input.
ByIdentity chains_at_work(Search& search) {
    const Rules& rules = search.settings.rules;
    const Slots slots = search.slots();
    const size_t pixels = rules.shape.size();
    const size_t bytes = pixels * search.settings.input.element_size();
    ByIdentity found;
    for (int64_t slot = 0; slot < slots.count; ++slot) {
        const Chain& chain = slots.chains[slot];
        if (!is_working(chain.status)) continue;
        Bytes& all = found[chain.seed_index];
        append(all, &chain, sizeof chain);
        append(all, slots.traces + slot * rules.budget, chain.step);
        append(all, slots.image(chain.current, slot), pixels);
        append(all, search.input.data() + slot * bytes, bytes);
        if (chain.status == Status::fresh) continue;
        append(all, slots.image(mutant_buffer(chain), slot), pixels);
        if (bisects(chain)) append(all, slots.image(chain.bisection.far, slot), pixels);
        const uint32_t* tags = static_cast<const uint32_t*>(slots.coverage) + slot * table_words(rules.capacity);
        for (uint32_t place = 0; place < rules.capacity; ++place) {
            const uint32_t tag = is_taken(tags + rules.capacity, place) ? tags[place] : 0;
            append(all, &tag, sizeof tag);
        }
    }
    return found;
}

// What lies in the ring unread: record, trace, the image of those that have one. Counts the steps that were blends.
void read_ring(Search& search, ByIdentity& read, int64_t& blends) {
    const Rules& rules = search.settings.rules;
    const Slots slots = search.slots();
    for (; slots.counters->consumed < slots.counters->ended; ++slots.counters->consumed) {
        const int64_t place = slots.counters->consumed % slots.ring_capacity;
        const Chain& chain = slots.ring_chains[place];
        Bytes& all = read[chain.seed_index];
        if (!all.empty()) {
            std::printf("seed %lu ended twice\n", static_cast<unsigned long>(chain.seed_index));
            differences += 1;
        }
        append(all, &chain, sizeof chain);
        const uint8_t* trace = slots.ring_traces + place * rules.budget;
        append(all, trace, chain.step);
        blends += std::count_if(trace, trace + chain.step, [](uint8_t byte) { return (byte & 7) == kBlend; });
        if (chain.kind == Kind::exhausted) continue;
        append(all, slots.ring_images + place * rules.shape.size(), rules.shape.size());
    }
}

void compare(const std::string& what, const ByIdentity& cpu, const ByIdentity& cuda) {
    for (const auto& [identity, bytes] : cpu) bytes_compared += bytes.size();
    if (cpu == cuda) return;
    std::printf("%s: %zu and %zu chains, not all of them alike\n", what.c_str(), cpu.size(), cuda.size());
    differences += 1;
}

template <class T>
void check_guard(const std::string& what, const Array<T>& array) {
    if (std::all_of(array.memory.end() - kGuard, array.memory.end(), [](uint8_t byte) { return byte == 0xee; })) return;
    std::printf("%s: written beyond its end\n", what.c_str());
    differences += 1;
}

// A search to its end. Now and then nobody reads the ring; it may fill up, and ended chains wait in their slots.
void fused(const Settings& settings, int threads, const std::string& name) {
    Search cpu(settings);
    Search cuda = cpu;
    ByIdentity cpu_read, cuda_read;
    std::vector<float> original, compressed;
    const Rules& rules = settings.rules;
    for (Search* search : {&cpu, &cuda}) {
        cpu::refill(search->slots());
        cpu::mutate(rules, search->slots(), search->model_input(), kOneThread);
    }
    int parked = 0;
    int64_t cpu_blends = 0, cuda_blends = 0;
    for (int i = 0; cpu.counters.data()->consumed < settings.seeds && differences == 0; ++i) {
        emulator::set_order(static_cast<emulator::Order>(i % 3));
        score_queries(cpu, original, compressed);
        cpu::step(rules, cpu.slots(), cpu.model_input(), original.data(), compressed.data(), settings.classes,
                  kOneThread);
        score_queries(cuda, original, compressed);
        cuda::step(rules, cuda.slots(), cuda.model_input(), original.data(), compressed.data(), settings.classes,
                   threads, nullptr);
        const std::string where = name + ", iteration " + std::to_string(i);
        compare(where.c_str(), "counters", cpu.counters, cuda.counters);
        compare(where, chains_at_work(cpu), chains_at_work(cuda));
        for (int64_t slot = 0; slot < settings.chains; ++slot) {
            parked += cuda.chains.data()[slot].status == Status::ended;
        }
        if (i % 8 < 5) continue;
        read_ring(cpu, cpu_read, cpu_blends);
        read_ring(cuda, cuda_read, cuda_blends);
    }
    compare(name + ", ended chains", cpu_read, cuda_read);
    for (const auto* bytes :
         {&cuda.images, &cuda.traces, &cuda.coverage, &cuda.ring_images, &cuda.ring_traces, &cuda.input}) {
        check_guard(name, *bytes);
    }
    check_guard(name, cuda.chains);
    check_guard(name, cuda.ring_chains);
    std::printf("%s: parked %d, blends %ld\n", name.c_str(), parked, static_cast<long>(cuda_blends));
}

void steps_in_one() {
    const Shape shapes[] = {{1, 28, 28}, {3, 32, 32}, {1, 1, 1},  {2, 5, 3},     {1, 29, 27},
                            {3, 33, 31}, {3, 37, 70}, {5, 9, 16}, {1, 128, 128}, {1, 129, 128}};
    int number = 0;
    for (const Shape& shape : shapes) {
        for (const int threads : {32, 128, 512}) {
            for (int variant = 0; variant < 2; ++variant, ++number) {
                Settings s = {};
                s.rules.seed = generator();
                s.rules.shape = shape;
                s.rules.budget = number % 7 == 6 ? 1 : 9;
                s.rules.overflow = static_cast<Overflow>(number % 2);
                s.rules.linf = number % 3 == 2 ? 20 : -1;
                s.rules.skip_identity = number % 4 == 3;
                s.rules.selection = static_cast<Selection>(number % 3);
                s.rules.acceptance = static_cast<Acceptance>(number % 4);
                s.rules.bisect = number % 5 < 2 ? 0 : 2 * (number % 5);
                s.rules.coverage = number % 11 == 10 ? Coverage::nearest : Coverage::hash;
                s.rules.grid = 10;
                s.rules.threshold = 1u << 24;
                s.rules.capacity = s.rules.coverage == Coverage::hash ? 1u << number % 7 : 3;
                s.rules.original_scores = static_cast<Scores>(number / 2 % 2);
                s.rules.compressed_scores = static_cast<Scores>(number / 3 % 2);
                s.input.type = static_cast<InputType>(number % 3);
                s.input.layout = static_cast<Layout>(number / 3 % 2);
                s.chains = shape.size() < 1000 ? 40 : 7;
                s.pitch = (shape.size() + 15) / 16 * 16 + (number % 5 == 4 ? 1 : 0);
                s.seeds = shape.size() < 10000 ? 2 * s.chains + 3 : s.chains + 2;
                s.ring = number % 2 == 0 ? 2 * s.chains : s.chains / 3 + 1;
                s.classes = number % 4 == 0 ? 33 : 10;
                fused(s, threads, "step " + std::to_string(number));
            }
        }
    }
    // The group that the launcher chooses for a crowd.
    Settings s = {};
    s.rules.shape = {1, 3, 5};
    s.rules.budget = 4;
    s.rules.capacity = 4;
    s.chains = 4500;
    s.pitch = 16;
    s.seeds = 6000;
    s.ring = 3000;
    s.classes = 2;
    fused(s, 0, "crowd");
}

// Many slots: more than one round of the scans, with ended and idle chains in random places.
void crowds() {
    Settings s = {};
    s.rules.shape = {1, 2, 2};
    s.rules.budget = 3;
    s.rules.capacity = 2;
    s.chains = 5000;
    s.pitch = 4;
    s.seeds = 9000;
    s.ring = 4000;
    s.classes = 2;
    search(s, 4, "crowd");
}

void many_classes() {
    for (const Coverage coverage : {Coverage::hash, Coverage::nearest}) {
        for (const int32_t classes : {1000, 20000}) {  // 20000: one warp a CTA
            Settings s = {};
            s.rules.shape = {1, 2, 2};
            s.rules.budget = 6;
            s.rules.coverage = coverage;
            s.rules.threshold = 1u << 10;
            s.rules.grid = 1000;
            s.rules.capacity = coverage == Coverage::hash ? 16 : 2;
            s.chains = 6;
            s.pitch = 16;
            s.seeds = 9;
            s.ring = 6;
            s.classes = classes;
            search(s, 7, "classes " + std::to_string(classes));
        }
    }
}

// Every operator with every size, clipped and wrapped, bounded and not.
void operators(const Shape& shape, int64_t count) {
    const size_t pixels = shape.size();
    Array<uint8_t> images(count * pixels), origins(count * pixels);
    images.fill_randomly();
    origins.fill_randomly();
    std::vector<uint64_t> indices(count);
    std::vector<uint32_t> steps(count);
    for (int64_t i = 0; i < count; ++i) {
        indices[i] = random_below(1ull << 56);
        steps[i] = static_cast<uint32_t>(1 + random_below(1000));
    }
    int variant = 0;
    for (int op = 0; op <= kBlend; ++op) {
        for (const int size : {-1, 0, 1, 2, 3, 4, 5, 7, 9}) {
            const bool is_point = op == kAdditive || op == kSaltPepper || op == kMultiplicative;
            const bool is_blur = op == kBox ? size >= 1 && size <= 5 : op > kBox && size % 2 == 1 && size <= 7;
            const bool fits = op == kBlend ? size > 0 : (size < 0 || op == kPixel || (!is_point && is_blur));
            if (!fits) continue;
            for (int overflow = 0; overflow < 2; ++overflow, ++variant) {
                Array<uint8_t> cpu(count * pixels), cuda(count * pixels);
                emulator::set_order(static_cast<emulator::Order>(variant % 3));
                ApplyTask task = {static_cast<Operator>(op),
                                  size,
                                  generator(),
                                  shape,
                                  static_cast<Overflow>(overflow),
                                  variant % 3 == 0 ? 30 : -1,
                                  variant % 5 == 0,
                                  count,
                                  images.data(),
                                  indices.data(),
                                  steps.data(),
                                  origins.data(),
                                  variant % 2 == 0,
                                  cpu.data()};
                cpu::apply(task, kOneThread);
                task.out = cuda.data();
                cuda::apply(task, nullptr);
                compare(("apply operator " + std::to_string(op) + " size " + std::to_string(size)).c_str(), "images",
                        cpu, cuda);
            }
        }
    }
    for (int type = 0; type < 3; ++type) {
        for (int layout = 0; layout < 2; ++layout) {
            Input input = {nullptr, nullptr, static_cast<InputType>(type), static_cast<Layout>(layout)};
            Array<uint8_t> table(shape.channels * 256 * input.element_size());
            table.fill_randomly();
            Array<uint8_t> cpu(count * pixels * input.element_size()), cuda(count * pixels * input.element_size());
            input.table = table.data();
            input.data = cpu.data();
            cpu::normalize(images.data(), count, shape, input, kOneThread);
            input.data = cuda.data();
            cuda::normalize(images.data(), count, shape, input, nullptr);
            compare("normalize", "input", cpu, cuda);
        }
    }
}

// Any float, many of them not finite or at the ends of what there is.
void fill_with_floats(Array<float>& array, float size) {
    const float odd[] = {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 0.0f, -0.0f, 1e-45f};
    for (size_t i = 0; i < array.count; ++i) {
        const double u = static_cast<double>(random_below(1 << 24)) / (1 << 23) - 1;
        array.data()[i] = random_below(10) != 0 ? static_cast<float>(size * u) : odd[random_below(std::size(odd))];
    }
}

void fill_with_flags(Array<uint8_t>& array) {
    for (size_t i = 0; i < array.count; ++i) array.data()[i] = static_cast<uint8_t>(random_below(3));
}

void steps(const Shape& shape, int64_t count) {
    const size_t values = count * shape.size();
    Array<float> table(shape.channels * 256), scale(shape.channels), bound(shape.channels), total(shape.channels);
    for (int32_t c = 0; c < shape.channels; ++c) {
        for (int32_t v = 0; v < 256; ++v) table.data()[c * 256 + v] = (v / 255.0f - 0.4f) / (0.2f + 0.01f * c);
        scale.data()[c] = 255 / (table.data()[c * 256 + 255] - table.data()[c * 256]);
        bound.data()[c] = 0.06f + 0.01f * c;
        total.data()[c] = 0.2f;
    }
    Array<float> gradient(values);
    Array<uint8_t> origin(values), active(count);
    origin.fill_randomly();
    for (int variant = 0; variant < 32; ++variant) {
        fill_with_floats(gradient, 2.0f);
        fill_with_flags(active);
        Array<float> cpu_state(values);
        fill_with_floats(cpu_state, 2.5f);
        Array<float> cuda_state = cpu_state;
        Array<uint8_t> cpu_picture(values), cpu_linf(count);
        cpu_picture.fill_randomly();
        Array<uint8_t> cuda_picture = cpu_picture, cuda_linf(count);
        Array<int64_t> cpu_squares(count), cuda_squares(count);
        emulator::set_order(static_cast<emulator::Order>(variant % 3));
        DescendTask task = {shape,
                            0.9f,
                            (variant & 1) != 0,
                            (variant & 2) != 0,
                            table.data(),
                            scale.data(),
                            (variant & 4) != 0 ? bound.data() : nullptr,
                            (variant & 8) != 0 ? total.data() : nullptr,
                            count,
                            (variant & 16) != 0 ? active.data() : nullptr,
                            cpu_state.data(),
                            gradient.data(),
                            origin.data(),
                            cpu_picture.data(),
                            cpu_squares.data(),
                            cpu_linf.data()};
        cpu::descend(task, kOneThread);
        task.state = cuda_state.data();
        task.picture = cuda_picture.data();
        task.l2_squared = cuda_squares.data();
        task.linf = cuda_linf.data();
        cuda::descend(task, nullptr);
        compare("descend", "states", cpu_state, cuda_state);
        compare("descend", "pictures", cpu_picture, cuda_picture);
        compare("descend", "squared distances", cpu_squares, cuda_squares);
        compare("descend", "largest distances", cpu_linf, cuda_linf);
    }
}

// Activations of both models with their layers, in any order of the axes in memory. `lost` of 1000 neurons are alive in the original
// and dead in the compressed model.
struct Activations {
    std::vector<Array<float>> memory;
    std::vector<Array<uint8_t>> marks;
    std::vector<Layer> layers;
    int64_t neurons = 0;

    Activations(int layer_count, int64_t rows, uint64_t lost) {
        for (int l = 0; l < layer_count; ++l) {
            Layer layer = {};
            layer.first = neurons;
            layer.count = 1;
            layer.axes = 1 + random_below(kMaxAxes);
            for (int64_t axis = 0; axis < layer.axes; ++axis) {
                layer.extents[axis] = static_cast<int32_t>(1 + random_below(l == 0 ? 12 : 6));
                layer.count *= layer.extents[axis];
            }
            neurons += layer.count;
            for (int model = 0; model < 2; ++model) {
                Rows& place = layer.values[model];
                int64_t order[kMaxAxes] = {0, 1, 2, 3};
                std::shuffle(order, order + layer.axes, generator);
                int64_t step = 1;
                for (int64_t i = 0; i < layer.axes; ++i) {
                    place.strides[order[i]] = step;
                    step *= layer.extents[order[i]];
                }
                place.row = step + random_below(3);
                memory.emplace_back(rows * place.row);
                place.data = memory.back().data();
            }
            fill(layer, rows, lost);
            marks.emplace_back(layer.count);
            for (int64_t i = 0; i < layer.count; ++i) marks.back().data()[i] = static_cast<uint8_t>(random_below(3));
            layers.push_back(layer);
        }
        for (int l = 0; l < layer_count; ++l) layers[l].covered = marks[l].data();
    }

    void fill(const Layer& layer, int64_t rows, uint64_t lost) {
        for (int64_t row = 0; row < rows; ++row) {
            for (int64_t position = 0; position < layer.count; ++position) {
                const bool goes = random_below(1000) < lost;
                const float value = random_below(20) == 0 ? NAN : static_cast<float>(1 + random_below(9)) / 4;
                const float sign = random_below(2) != 0 ? 1.0f : -1.0f;
                const float values[2] = {goes ? value : sign * value,
                                         goes ? (value > 1 ? 0.0f : -value) : sign * value};
                for (int model = 0; model < 2; ++model) {
                    const Rows& place = layer.values[model];
                    const_cast<float*>(place.data)[offset_of(layer, place, row, position)] = values[model];
                }
            }
        }
    }
};

void neurons() {
    int64_t by_draws = 0, by_scan = 0, none = 0;
    for (int variant = 0; variant < 40; ++variant) {
        const int64_t rows = 1 + random_below(7);
        const uint64_t lost[] = {300, 30, 2, 0};
        Activations activations(1 + static_cast<int>(random_below(9)), rows, lost[variant % 4]);
        Array<uint64_t> identities(rows);
        Array<uint32_t> steps(rows);
        for (int64_t i = 0; i < rows; ++i) identities.data()[i] = random_below(1ull << 56);
        for (int64_t i = 0; i < rows; ++i) steps.data()[i] = static_cast<uint32_t>(generator());
        Array<uint8_t> active(rows);
        fill_with_flags(active);
        Array<int32_t> cpu_layer(rows), cuda_layer(rows);
        Array<int64_t> cpu_position(rows), cuda_position(rows);
        const int32_t trials[] = {0, 1, 40, 1500};
        SelectTask task = {generator(),
                           trials[variant / 4 % 4],
                           activations.layers.data(),
                           static_cast<int32_t>(activations.layers.size()),
                           rows,
                           identities.data(),
                           steps.data(),
                           variant % 3 == 0 ? active.data() : nullptr,
                           cpu_layer.data(),
                           cpu_position.data()};
        emulator::set_order(static_cast<emulator::Order>(variant % 3));
        cpu::select_neurons(task, kOneThread);
        for (int64_t i = 0; i < rows; ++i) {
            bool drawn = false;
            for (int32_t t = 0; t < task.trials; ++t) {
                const Stream stream = {task.seed, task.identities[i], task.steps[i]};
                const Neuron neuron = drawn_neuron(task, stream, static_cast<uint32_t>(t));
                drawn = drawn || is_lost(task.layers[neuron.layer], i, neuron.position);
            }
            (cpu_layer.data()[i] < 0 ? none : drawn ? by_draws : by_scan) += 1;
        }
        task.layer = cuda_layer.data();
        task.position = cuda_position.data();
        cuda::select_neurons(task, nullptr);
        compare("select_neurons", "layers", cpu_layer, cuda_layer);
        compare("select_neurons", "positions", cpu_position, cuda_position);

        CoverTask cover = {task.layers, task.layer_count, activations.neurons, rows, task.active};
        std::vector<Array<uint8_t>> marks = activations.marks;
        cpu::cover(cover, kOneThread);
        std::swap(marks, activations.marks);
        for (size_t l = 0; l < marks.size(); ++l) activations.layers[l].covered = activations.marks[l].data();
        cuda::cover(cover, nullptr);
        for (size_t l = 0; l < marks.size(); ++l) compare("cover", "marks", marks[l], activations.marks[l]);
    }
    std::printf("neurons: by draws %ld, by scan %ld, none %ld\n", static_cast<long>(by_draws),
                static_cast<long>(by_scan), static_cast<long>(none));
}

// ---- slices ---------------------------------------------------------------------------------------------------------------------------

// Ordinary numbers, numbers of few magnitudes, of all magnitudes, of one, whose products underflow or overflow; a few or many zeros.
void fill_with_numbers(Array<float>& array, uint64_t kind) {
    const uint64_t zeros = random_below(3) * 30;
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < array.count; ++i) {
        const float scales[] = {1.0f, 1.0f,   std::pow(10.0f, static_cast<float>(random_below(76)) - 38.0f),
                                1.0f, 1e-38f, 1e38f};
        float value = normal(generator);
        if (kind == 1) value = static_cast<float>(random_below(7)) / 2.0f - 1.5f;
        if (kind == 3) value = value < 0.0f ? -1.0f : 1.0f;
        value = random_below(100) < zeros ? 0.0f : std::fmin(std::fmax(value * scales[kind], -3e38f), 3e38f);
        array.data()[i] = value;
    }
}

struct Slice {
    SliceTask task;
    Array<float> delta, weight;
    Array<int8_t> sign;
    Array<int32_t> inputs, signed_sum, absolute, per_sample;

    Slice(SliceTask t, bool is_even) : task(t) {
        for (int axis = 0; axis < 2; ++axis) {
            const int32_t extent = axis == 0 ? t.height : t.width;
            const int32_t kernel = axis == 0 ? t.kernel_height : t.kernel_width;
            const int32_t room = extent + 2 * t.padding[axis] - t.dilation[axis] * (kernel - 1) - 1;
            (axis == 0 ? task.out_height : task.out_width) = room / t.stride[axis] + 1;
        }
        const size_t weights = static_cast<size_t>(t.outputs) * taps_of(t);
        delta = Array<float>(t.samples * input_size(t));
        weight = Array<float>(weights);
        sign = Array<int8_t>(t.samples * t.outputs * positions_of(task));
        fill_with_numbers(delta, is_even ? 3 : random_below(6));
        fill_with_numbers(weight, is_even ? 3 : random_below(6));
        for (size_t i = 0; i < sign.count; ++i) sign.data()[i] = static_cast<int8_t>(random_below(3)) - 1;
        inputs = Array<int32_t>(delta.count);
        signed_sum = Array<int32_t>(weights);
        absolute = Array<int32_t>(weights);
        per_sample = Array<int32_t>(t.samples * weights);
        for (Array<int32_t>* array : {&inputs, &signed_sum, &absolute, &per_sample}) {
            for (size_t i = 0; i < array->count; ++i)
                array->data()[i] = static_cast<int32_t>(random_below(2000)) - 1000;
        }
    }

    SliceTask with_memory(uint64_t wanted) {
        SliceTask result = task;
        result.delta = delta.data();
        result.weight = weight.data();
        result.sign = sign.data();
        result.inputs = wanted & 1 ? inputs.data() : nullptr;
        result.signed_sum = wanted & 2 ? signed_sum.data() : nullptr;
        result.absolute = wanted & 4 ? absolute.data() : nullptr;
        result.per_sample = wanted & 8 ? per_sample.data() : nullptr;
        return result;
    }
};

int64_t sum_of(const Array<int32_t>& array) {
    const int32_t* data = reinterpret_cast<const int32_t*>(array.memory.data());
    return std::accumulate(data, data + array.count, int64_t{0});
}

void contributions() {
    int64_t neurons = 0, found = 0;
    for (int variant = 0; variant < 300; ++variant) {
        const auto one_of = [](int32_t low, int32_t high) {
            return low + static_cast<int32_t>(random_below(high - low + 1));
        };
        SliceTask task = {};
        task.samples = one_of(1, 3);
        task.groups = one_of(1, 3);
        task.channels = task.groups * one_of(1, 4);
        task.outputs = task.groups * one_of(1, 3);
        task.kernel_height = one_of(1, 5);
        task.kernel_width = one_of(1, 5);
        for (int axis = 0; axis < 2; ++axis) {
            task.stride[axis] = one_of(1, 3);
            task.padding[axis] = one_of(0, 3);
            task.dilation[axis] = one_of(1, 2);
        }
        task.height = one_of(0, 3) + task.dilation[0] * (task.kernel_height - 1) + 1;
        task.width = one_of(0, 3) + task.dilation[1] * (task.kernel_width - 1) + 1;
        if (variant % 6 == 0) {  // more taps than threads
            task.channels = task.groups * one_of(30, 200);
            task.samples = 1;
        }
        const double epsilons[] = {0.2, 0.02, 1e-9, 2.0};
        const double betas[] = {0.01, 0.0, 0.3, 1.0, 0.01};
        task.epsilon = epsilons[variant % 4];
        task.share = 1.0 - betas[variant % 5];
        Slice cpu(task, variant % 12 == 0);  // all of one magnitude: only their indices put them in order
        Slice cuda = cpu;
        const uint64_t wanted = variant % 2 == 0 ? 15 : random_below(16);
        emulator::set_order(static_cast<emulator::Order>(variant % 3));
        const int64_t before = sum_of(cpu.absolute);
        cpu::contributions(cpu.with_memory(wanted), kOneThread);
        cuda::contributions(cuda.with_memory(wanted), nullptr);
        compare("contributions", "inputs", cpu.inputs, cuda.inputs);
        compare("contributions", "signed sums", cpu.signed_sum, cuda.signed_sum);
        compare("contributions", "absolute sums", cpu.absolute, cuda.absolute);
        compare("contributions", "sums of samples", cpu.per_sample, cuda.per_sample);
        neurons += static_cast<int64_t>(cpu.sign.count);
        found += sum_of(cpu.absolute) - before;
    }
    std::printf("contributions: %ld neurons, %ld contributions\n", static_cast<long>(neurons),
                static_cast<long>(found));
}

void refuses_too_many_taps() {
    SliceTask task = {};
    task.samples = task.groups = task.outputs = task.height = task.width = task.kernel_height = task.kernel_width = 1;
    task.stride[0] = task.stride[1] = task.dilation[0] = task.dilation[1] = 1;
    task.channels = 60000;
    Slice slice(task, false);
    try {
        cuda::contributions(slice.with_memory(15), nullptr);
    } catch (const std::runtime_error& error) {
        if (std::strstr(error.what(), "60000") != nullptr) return;
    }
    std::printf("contributions: 60000 taps were not refused\n");
    differences += 1;
}

void verdicts() {
    for (int variant = 0; variant < 24; ++variant) {
        const int32_t classes[] = {2, 10, 33, 1000};
        Settings s = {};
        s.chains = 37;
        s.classes = classes[variant % 4];
        s.rules.original_scores = static_cast<Scores>(variant / 4 % 2);
        s.rules.compressed_scores = static_cast<Scores>(variant / 8 % 2);
        std::vector<float> original, compressed;
        draw_scores(s, s.rules.original_scores, original, nullptr);
        draw_scores(s, s.rules.compressed_scores, compressed,
                    s.rules.original_scores == s.rules.compressed_scores ? &original : nullptr);
        Array<int32_t> cpu_labels(2 * s.chains), cuda_labels(2 * s.chains);
        Array<uint32_t> cpu_confidences(2 * s.chains), cuda_confidences(2 * s.chains);
        Array<uint8_t> cpu_non_finite(s.chains), cuda_non_finite(s.chains);
        VerdictTask task = {original.data(),   compressed.data(),       s.chains,
                            s.classes,         s.rules.original_scores, s.rules.compressed_scores,
                            cpu_labels.data(), cpu_confidences.data(),  cpu_non_finite.data()};
        cpu::verdicts(task, kOneThread);
        task.labels = cuda_labels.data();
        task.confidences = cuda_confidences.data();
        task.non_finite = cuda_non_finite.data();
        cuda::verdicts(task, nullptr);
        compare("verdicts", "labels", cpu_labels, cuda_labels);
        compare("verdicts", "confidences", cpu_confidences, cuda_confidences);
        compare("verdicts", "non-finite", cpu_non_finite, cuda_non_finite);
    }
}

// ---- medians --------------------------------------------------------------------------------------------------------------------------

// 64 cases of zeros and ones. A network of minima and maxima that is right for all of those is right for all values (Knuth, 5.3.4).
struct Cases {
    uint64_t ones;
};

void order(Cases& a, Cases& b) {
    const uint64_t low = a.ones & b.ones;
    b.ones |= a.ones;
    a.ones = low;
}

void check_case(bool right, const char* what, int size) {
    if (right) return;
    std::printf("%s of size %d: wrong\n", what, size);
    differences += 1;
}

// All cases of one column, then all numbers of ones in the columns: once these are sorted, nothing else tells cases apart.
template <int size, int twins>
void medians_by_zeros_and_ones() {
    for (uint32_t bits = 0; bits < 1u << size; ++bits) {
        Cases column[size], sorted[size];
        for (int i = 0; i < size; ++i) column[i].ones = bits >> i & 1;
        sort_values<size>(column, sorted);
        const int zeros = size - __builtin_popcount(bits);
        for (int i = 0; i < size; ++i) check_case(sorted[i].ones == (i >= zeros), "sorted column", size);
    }
    constexpr int columns = size + 2 * twins - 1;
    uint64_t total = 1;
    for (int c = 0; c < columns; ++c) total *= size + 1;
    for (uint64_t first = 0; first < total && differences == 0; first += 64) {
        Cases values[columns][size] = {};
        uint64_t expected[2 * twins] = {};
        for (uint64_t lane = 0; lane < 64; ++lane) {
            int ones[columns];
            uint64_t code = (first + lane) % total;
            for (int c = 0; c < columns; ++c, code /= size + 1) {
                ones[c] = static_cast<int>(code % (size + 1));
                for (int i = 0; i < ones[c]; ++i) values[c][(i + c + lane) % size].ones |= 1ull << lane;
            }
            for (int window = 0; window < 2 * twins; ++window) {
                const int all = std::accumulate(ones + window, ones + window + size, 0);
                expected[window] |= static_cast<uint64_t>(2 * all > size * size) << lane;
            }
        }
        Cases found[2 * twins];
        medians<size, twins>([&](int c, Cases* column) { std::copy(values[c], values[c] + size, column); }, found);
        for (int w = 0; w < 2 * twins; ++w) check_case(found[w].ones == expected[w], "median", size);
    }
    std::printf("medians of size %d, %d windows: %lu cases\n", size, 2 * twins, static_cast<unsigned long>(total));
}

void refuses_too_many_classes() {
    Settings s = {};
    s.rules.coverage = Coverage::nearest;
    s.rules.capacity = 1;
    s.chains = s.seeds = s.ring = 1;
    s.pitch = 1;
    s.classes = 60000;
    Search search(s);
    std::vector<float> scores(s.classes);
    try {
        cuda::judge(s.rules, search.slots(), scores.data(), scores.data(), s.classes, nullptr);
    } catch (const std::runtime_error& error) {
        if (std::strstr(error.what(), "60000") != nullptr) return;
    }
    std::printf("judge: 60000 classes were not refused\n");
    differences += 1;
}

}  // namespace
}  // namespace compdx

int main() {
    using namespace compdx;
    searches();
    medians_by_zeros_and_ones<3, 2>();
    medians_by_zeros_and_ones<5, 2>();
    medians_by_zeros_and_ones<7, 1>();
    steps_in_one();
    crowds();
    many_classes();
    for (const Shape& shape : {Shape{1, 28, 28}, Shape{3, 32, 32}, Shape{2, 5, 3}, Shape{1, 1, 1}}) operators(shape, 3);
    operators({1, 67, 131}, 1);
    for (const Shape& shape : {Shape{1, 28, 28}, Shape{3, 32, 32}, Shape{3, 7, 5}, Shape{2, 17, 19}}) steps(shape, 5);
    steps({1, 1, 1}, 40);
    steps({2, 131, 67}, 2);  // more threads a CTA
    neurons();
    contributions();
    verdicts();
    refuses_too_many_classes();
    refuses_too_many_taps();
    std::printf("%ld bytes compared, %d differences\n", static_cast<long>(bytes_compared), differences);
    return differences == 0 ? 0 : 1;
}
