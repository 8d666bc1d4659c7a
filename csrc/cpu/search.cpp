#include "cpu/search.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "core/coverage.h"
#include "core/select.h"
#include "cpu/loops.h"
#include "cpu/threads.h"

namespace compdx::cpu {
namespace {

// Chunks are small because operators differ in cost by an order of magnitude, and large images are many chunks by themselves.
int64_t image_grain(const Shape& shape) {
    const int64_t grain = 16384 / shape.size();
    return grain < 1 ? 1 : grain;
}

// Working memory of each thread that can have work, aligned for whole vectors. Not cleared: what is read before it was written is
// thrown away again (the columns between the rows of padded planes).
class Scratch {
  public:
    Scratch(int64_t count, int64_t grain, int threads, int64_t bytes)
        : stride_((bytes + 127) / 64 * 64),
          memory_(new uint8_t[stride_ * std::max<int64_t>(1, std::min<int64_t>(threads, (count + grain - 1) / grain)) +
                              64]) {}

    uint8_t* of(int worker) {
        const auto address = reinterpret_cast<uintptr_t>(memory_.get());
        return reinterpret_cast<uint8_t*>((address + 63) / 64 * 64) + worker * stride_;
    }

  private:
    int64_t stride_;
    std::unique_ptr<uint8_t[]> memory_;
};

void mutate_slot(const Rules& rules, const Slots& slots, const Input& input, const Loops& loop, int64_t slot,
                 uint8_t* scratch) {
    Chain& chain = slots.chains[slot];
    const int32_t pixels = rules.shape.size();
    uint8_t* image = slots.image(chain.current, slot);
    if (chain.status == Status::fresh) {
        std::memcpy(image, slots.seed(chain.row, pixels), pixels);
    } else if (chain.status == Status::active) {
        const Stream stream = stream_of_next(rules, chain);
        const Operator op = bisects(chain) ? kBlend : choose_operator(rules, chain, stream);
        const Draw draw = draw_next(rules, chain, op, stream);
        chain.pending = op;
        const uint8_t* parent = image;
        const uint8_t* far = slots.image(chain.bisection.far, slot);
        image = slots.image(mutant_buffer(chain), slot);
        loop.mutate({draw, stream, rules.shape, rules.overflow, rules.linf, parent, slots.seed(chain.row, pixels), far,
                     image, scratch});
    } else {
        return;  // nobody reads the scores of this slot
    }
    loop.write_input(image, rules.shape, input, slot);
}

bool enter_state(const Rules& rules, const Slots& slots, const Loops& loop, int64_t slot, const uint16_t* state,
                 int32_t classes) {
    const Chain& chain = slots.chains[slot];
    if (rules.coverage == Coverage::hash) {
        const uint64_t hash =
            loop.state_hash(state, classes, 0, rules.grid) + loop.state_hash(state + classes, classes, 1, rules.grid);
        uint32_t* table = static_cast<uint32_t*>(slots.coverage) + slot * table_words(rules.capacity);
        if (chain.status == Status::fresh) {
            std::memset(table + rules.capacity, 0, taken_words(rules.capacity) * sizeof(uint32_t));
        }
        return enter_tag(table, rules.capacity, chain.states, state_tag(hash));
    }
    const int64_t width = 2 * static_cast<int64_t>(classes);
    uint16_t* archive = static_cast<uint16_t*>(slots.coverage) + slot * rules.capacity * width;
    const uint32_t held = chain.states < rules.capacity ? chain.states : rules.capacity;
    for (uint32_t i = 0; i < held; ++i) {
        if (loop.squared_distance(state, archive + i * width, width) <= rules.threshold) return false;
    }
    std::memcpy(archive + chain.states % rules.capacity * width, state, width * sizeof(uint16_t));
    return true;
}

void judge_slot(const Rules& rules, const Slots& slots, const Loops& loop, int64_t slot, const float* original,
                const float* compressed, int32_t classes, uint16_t* state) {
    Chain& chain = slots.chains[slot];
    if (!is_working(chain.status)) return;
    const bool is_mutant = chain.status == Status::active;
    const Scored a = loop.score({original + slot * classes, classes, rules.original_scores, state});
    const Scored b = loop.score({compressed + slot * classes, classes, rules.compressed_scores, state + classes});
    const Verdict verdict = make_verdict(a, b);
    uint8_t trace = plain_trace(chain);
    if (record_verdict(chain, verdict)) {
        const bool novel = enter_state(rules, slots, loop, slot, state, classes);
        trace = settle(rules, chain, verdict, novel);
    }
    if (is_mutant) slots.traces[slot * rules.budget + chain.step - 1] = trace;
}

void measure_change(const uint8_t* image, const uint8_t* seed, int32_t pixels, Chain& chain) {
    int64_t squares = 0;
    int32_t largest = 0;
    for (int32_t i = 0; i < pixels; ++i) {
        const int32_t d = static_cast<int32_t>(image[i]) - seed[i];
        const int32_t magnitude = d < 0 ? -d : d;
        squares += static_cast<int64_t>(d) * d;
        largest = magnitude > largest ? magnitude : largest;
    }
    chain.l2_squared = squares;
    chain.linf = static_cast<uint8_t>(largest);
}

}  // namespace

void mutate(const Rules& rules, const Slots& slots, const Input& input, const Execution& execution) {
    const Loops& loop = loops(execution.isa);
    const int64_t grain = image_grain(rules.shape);
    Scratch scratch(slots.count, grain, execution.threads, scratch_bytes(rules.shape));
    parallel_for(slots.count, grain, execution.threads, [&](int64_t begin, int64_t end, int worker) {
        for (int64_t slot = begin; slot < end; ++slot) mutate_slot(rules, slots, input, loop, slot, scratch.of(worker));
    });
}

void judge(const Rules& rules, const Slots& slots, const float* original, const float* compressed, int32_t classes,
           const Execution& execution) {
    const Loops& loop = loops(execution.isa);
    constexpr int64_t grain = 64;
    Scratch scratch(slots.count, grain, execution.threads, 2 * static_cast<int64_t>(classes) * sizeof(uint16_t));
    parallel_for(slots.count, grain, execution.threads, [&](int64_t begin, int64_t end, int worker) {
        uint16_t* state = reinterpret_cast<uint16_t*>(scratch.of(worker));
        for (int64_t slot = begin; slot < end; ++slot) {
            judge_slot(rules, slots, loop, slot, original, compressed, classes, state);
        }
    });
}

void harvest(const Rules& rules, const Slots& slots) {
    const int32_t pixels = rules.shape.size();
    int64_t room = slots.ring_capacity - (slots.counters->ended - slots.counters->consumed);
    for (int64_t slot = 0; slot < slots.count && room > 0; ++slot) {
        Chain& chain = slots.chains[slot];
        if (chain.status != Status::ended) continue;
        const int64_t place = slots.counters->ended % slots.ring_capacity;
        if (chain.kind != Kind::exhausted) {
            const uint8_t* image = slots.image(chain.current, slot);
            measure_change(image, slots.seed(chain.row, pixels), pixels, chain);
            std::memcpy(slots.ring_images + place * pixels, image, pixels);
        }
        std::memcpy(slots.ring_traces + place * rules.budget, slots.traces + slot * rules.budget, chain.step);
        slots.ring_chains[place] = chain;
        chain = Chain();
        slots.counters->ended += 1;
        room -= 1;
    }
}

void refill(const Slots& slots) {
    Counters& counters = *slots.counters;
    int64_t active = 0;
    for (int64_t slot = 0; slot < slots.count; ++slot) {
        Chain& chain = slots.chains[slot];
        if (chain.status == Status::idle && counters.next < slots.queue_length) {
            const int64_t row = slots.queue[counters.next++];
            chain = begin_chain(slots.identities[row], static_cast<int32_t>(row));
        }
        active += is_working(chain.status);
    }
    counters.active = active;
    counters.queries += active;
}

void step(const Rules& rules, const Slots& slots, const Input& input, const float* original, const float* compressed,
          int32_t classes, const Execution& execution) {
    judge(rules, slots, original, compressed, classes, execution);
    harvest(rules, slots);
    refill(slots);
    mutate(rules, slots, input, execution);
}

void apply(const ApplyTask& task, const Execution& execution) {
    const Loops& loop = loops(execution.isa);
    const int32_t pixels = task.shape.size();
    const int64_t grain = image_grain(task.shape);
    Scratch scratch(task.count, grain, execution.threads, scratch_bytes(task.shape));
    parallel_for(task.count, grain, execution.threads, [&](int64_t begin, int64_t end, int worker) {
        for (int64_t i = begin; i < end; ++i) {
            const Stream stream = {task.seed, task.indices[i], task.steps[i]};
            Draw draw = draw_operator(task.op, stream, task.skip_identity, pixels);
            if (task.size >= 0) draw.size = task.size;
            const uint8_t* origin = task.origins + (task.one_origin ? 0 : i * pixels);
            loop.mutate({draw, stream, task.shape, task.overflow, task.linf, task.images + i * pixels, origin, origin,
                         task.out + i * pixels, scratch.of(worker)});
        }
    });
}

void normalize(const uint8_t* images, int64_t count, const Shape& shape, const Input& input,
               const Execution& execution) {
    const Loops& loop = loops(execution.isa);
    parallel_for(count, image_grain(shape), execution.threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) loop.write_input(images + i * shape.size(), shape, input, i);
    });
}

void verdicts(const VerdictTask& task, const Execution& execution) {
    const Loops& loop = loops(execution.isa);
    const int32_t classes = task.classes;
    constexpr int64_t grain = 64;
    Scratch scratch(task.count, grain, execution.threads, static_cast<int64_t>(classes) * sizeof(uint16_t));
    parallel_for(task.count, grain, execution.threads, [&](int64_t begin, int64_t end, int worker) {
        uint16_t* state = reinterpret_cast<uint16_t*>(scratch.of(worker));
        for (int64_t i = begin; i < end; ++i) {
            const Scored a = loop.score({task.original + i * classes, classes, task.original_scores, state});
            const Scored b = loop.score({task.compressed + i * classes, classes, task.compressed_scores, state});
            store_verdict(task, i, make_verdict(a, b));
        }
    });
}

}  // namespace compdx::cpu
