#include "cpu/gradient.h"

#include <algorithm>

#include "cpu/loops.h"
#include "cpu/threads.h"

namespace compdx::cpu {
namespace {

// Values in a piece of work: enough to be worth a thread's while.
constexpr int64_t kGrainValues = 16384;

bool is_active(const uint8_t* active, int64_t row) { return active == nullptr || active[row] != 0; }

// Calls body(position, count) for the neurons [begin, end) of a layer, in pieces that lie in memory at one stride.
template <class Body>
void for_each_run(const Layer& layer, int64_t begin, int64_t end, Body&& body) {
    const int64_t extent = layer.extents[layer.axes - 1];
    for (int64_t position = begin; position < end;) {
        const int64_t count = std::min(extent - position % extent, end - position);
        body(position, count);
        position += count;
    }
}

Run run_at(const Layer& layer, int model, int64_t row, int64_t position) {
    const Rows& rows = layer.values[model];
    return {rows.data + offset_of(layer, rows, row, position), rows.strides[layer.axes - 1]};
}

int64_t count_lost(const Layer& layer, const Loops& loop, int64_t row, int64_t begin, int64_t end) {
    int64_t lost = 0;
    for_each_run(layer, begin, end, [&](int64_t position, int64_t count) {
        lost += loop.count_lost(run_at(layer, 0, row, position), run_at(layer, 1, row, position), count);
    });
    return lost;
}

// The lost neuron of a layer that has `place` of them before it.
int64_t find_lost(const Layer& layer, const Loops& loop, int64_t row, int64_t place) {
    int64_t position = 0;
    for (;;) {
        const int64_t end = std::min(position + kGrainValues, layer.count);
        const int64_t lost = count_lost(layer, loop, row, position, end);
        if (place < lost) break;
        place -= lost;
        position = end;
    }
    for (;; ++position) {
        if (is_lost(layer, row, position) && place-- == 0) return position;
    }
}

Neuron look_through(const SelectTask& task, const Loops& loop, const Stream& stream, int64_t row) {
    int64_t lost[kMaxLayers];
    uint64_t weights[kMaxLayers];
    for (int32_t l = 0; l < task.layer_count; ++l) {
        const Layer& layer = task.layers[l];
        lost[l] = count_lost(layer, loop, row, 0, layer.count);
        weights[l] = layer_weight(lost[l], layer.count);
    }
    const ScanDraw draw = scan_draw(stream, lost, weights, task.layer_count);
    if (draw.layer < 0) return {-1, -1};
    return {draw.layer, find_lost(task.layers[draw.layer], loop, row, draw.place)};
}

Neuron select_neuron(const SelectTask& task, const Loops& loop, int64_t row) {
    const Stream stream = {task.seed, task.identities[row], task.steps[row]};
    for (int32_t trial = 0; trial < task.trials; ++trial) {
        const Neuron neuron = drawn_neuron(task, stream, static_cast<uint32_t>(trial));
        if (is_lost(task.layers[neuron.layer], row, neuron.position)) return neuron;
    }
    return look_through(task, loop, stream, row);
}

}  // namespace

void descend(const DescendTask& task, const Execution& execution) {
    const Loops& loop = loops(execution.isa);
    const int64_t grain = std::max<int64_t>(1, kGrainValues / task.shape.size());
    parallel_for(task.count, grain, execution.threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t image = begin; image < end; ++image) {
            const Change change = is_active(task.active, image) ? loop.descend(task, image) : Change{0, 0};
            task.l2_squared[image] = change.squares;
            task.linf[image] = static_cast<uint8_t>(change.largest);
        }
    });
}

void select_neurons(const SelectTask& task, const Execution& execution) {
    const Loops& loop = loops(execution.isa);
    parallel_for(task.count, 1, execution.threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row) {
            const Neuron neuron = is_active(task.active, row) ? select_neuron(task, loop, row) : Neuron{-1, -1};
            task.layer[row] = neuron.layer;
            task.position[row] = neuron.position;
        }
    });
}

// Pieces are ranges of neurons, not of rows, so that no two threads mark the same one.
void cover(const CoverTask& task, const Execution& execution) {
    const Loops& loop = loops(execution.isa);
    parallel_for(task.neurons, kGrainValues, execution.threads, [&](int64_t begin, int64_t end, int) {
        const Layer* layer = task.layers;
        for (int64_t neuron = begin; neuron < end; neuron = layer->first + layer->count) {
            while (neuron >= layer->first + layer->count) ++layer;
            const int64_t last = std::min(end - layer->first, layer->count);
            for_each_run(*layer, neuron - layer->first, last, [&](int64_t position, int64_t count) {
                for (int64_t row = 0; row < task.count; ++row) {
                    if (!is_active(task.active, row)) continue;
                    loop.cover(run_at(*layer, 0, row, position), layer->covered + position, count);
                }
            });
        }
    });
}

}  // namespace compdx::cpu
