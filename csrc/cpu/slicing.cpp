#include "cpu/slicing.h"

#include <algorithm>
#include <vector>

#include "cpu/loops.h"
#include "cpu/threads.h"

namespace compdx::cpu {
namespace {

// Output channels that share the inputs of a position; their weights and counts stay in the second cache.
constexpr int32_t kTileOutputs = 16;
constexpr int64_t kTileTaps = 32768;
// Pieces of work for each thread, so that none waits long for the last one; and what is worth a thread's while.
constexpr int64_t kPiecesEach = 4;
constexpr int64_t kGrainProducts = 16384;

// Magnitudes that are put in order at once: half an octave of floats.
constexpr uint32_t kBatchMagnitudes = 1u << 22;

// Sums of integers do not depend on who comes first.
void add_shared(int32_t* address, int32_t value) { __atomic_fetch_add(address, value, __ATOMIC_RELAXED); }

struct Tile {
    int64_t sample;
    int32_t first;  // output channel
    int32_t count;
    int32_t group;
};

// The tiles of a task: some output channels of one group for one sample.
class Tiles {
  public:
    Tiles(const SliceTask& task, int threads) : in_group_(group_outputs(task)) {
        const int64_t wanted = kPiecesEach * threads;
        const int64_t groups = task.samples * task.groups;
        const int64_t pieces = std::max<int64_t>(1, (wanted + groups - 1) / groups);
        const int64_t even = (in_group_ + pieces - 1) / pieces;
        const int64_t most = std::max<int64_t>(1, std::min<int64_t>(kTileOutputs, kTileTaps / taps_of(task)));
        outputs_ = static_cast<int32_t>(std::min(even, most));
        per_group_ = (in_group_ + outputs_ - 1) / outputs_;
        per_sample_ = static_cast<int64_t>(per_group_) * task.groups;
        count_ = per_sample_ * task.samples;
    }

    int64_t count() const { return count_; }
    int32_t outputs() const { return outputs_; }

    Tile at(int64_t index) const {
        const int32_t place = static_cast<int32_t>(index % per_sample_);
        const int32_t group = place / per_group_;
        const int32_t first = place % per_group_ * outputs_;
        return {index / per_sample_, group * in_group_ + first, std::min(outputs_, in_group_ - first), group};
    }

  private:
    int32_t in_group_;
    int32_t outputs_;
    int32_t per_group_;
    int64_t per_sample_;
    int64_t count_;
};

// One thread's working memory, and what it does with it.
class Worker {
  public:
    Worker(const SliceTask& task, const Loops& loop, int32_t outputs)
        : task_(task),
          loop_(loop),
          taps_(taps_of(task)),
          deltas_(taps_),
          places_(taps_),
          products_(taps_),
          keys_(taps_),
          of_inputs_(taps_),
          of_weights_(static_cast<size_t>(outputs) * taps_),
          image_(task.inputs != nullptr ? static_cast<size_t>(group_channels(task)) * task.height * task.width : 0) {}

    void run(const Tile& tile) {
        const int32_t positions = positions_of(task_);
        const int8_t* sign = task_.sign + (tile.sample * task_.outputs + tile.first) * positions;
        for (int32_t position = 0; position < positions; ++position) {
            bool is_read = false;
            for (int32_t o = 0; o < tile.count; ++o) {
                const int32_t here = sign[static_cast<int64_t>(o) * positions + position];
                if (here == 0) continue;
                if (!is_read) read_window(tile, position);
                is_read = true;
                take(task_.weight + static_cast<int64_t>(tile.first + o) * taps_, here,
                     of_weights_.data() + static_cast<int64_t>(o) * taps_);
            }
            if (is_read) give_to_image(tile);
        }
        give_image(tile);
        give_weights(tile);
    }

  private:
    // The inputs of all taps, 0 in the padding: such products change no sum and are never kept.
    void read_window(const Tile& tile, int32_t position) {
        const Window window = window_of(task_, tile.group, position);
        const float* delta = task_.delta + tile.sample * input_size(task_);
        int32_t tap = 0;
        real_taps_ = 0;
        for (int32_t channel = 0; channel < group_channels(task_); ++channel) {
            for (int32_t row = 0; row < task_.kernel_height; ++row) {
                for (int32_t column = 0; column < task_.kernel_width; ++column, ++tap) {
                    const int32_t place = input_of(task_, window, channel, row, column);
                    places_[tap] = place;
                    deltas_[tap] = place >= 0 ? delta[place] : 0.0f;
                    real_taps_ += place >= 0;
                }
            }
        }
    }

    void take(const float* weight, int32_t sign, int32_t* counts) {
        if (real_taps_ == 1) return take_only_tap(weight, sign, counts);
        const uint32_t largest = loop_.multiply(weight, deltas_.data(), taps_, products_.data());
        if (largest == 0) return;
        const uint32_t bound = select(largest);
        if (bound == kKeepNothing) return;
        loop_.contribute(products_.data(), taps_, bound, sign, counts, of_inputs_.data());
    }

    void take_only_tap(const float* weight, int32_t sign, int32_t* counts) {
        for (int32_t tap = 0; tap < taps_; ++tap) {
            if (places_[tap] < 0) continue;
            const int32_t contribution = sign * sign_of(weight[tap]) * sign_of(deltas_[tap]);
            counts[tap] += contribution;
            of_inputs_[tap] += contribution;
        }
    }

    // The magnitude above which products are kept.
    uint32_t select(uint32_t largest) {
        const double scale = scale_of(largest);
        const int64_t total = loop_.sum_scaled(products_.data(), taps_, scale);
        if (is_cancelled(total, absolute_of(scaled(float_of_bits(largest), scale))) || is_below_all(total, scale)) {
            return kKeepNothing;
        }
        int64_t sum = 0;
        // Most sums are near their total after few products, so only as many are put in order as it takes.
        for (uint32_t high = largest;; high -= kBatchMagnitudes) {
            const uint32_t low = high > kBatchMagnitudes ? high - kBatchMagnitudes : 0;
            const int32_t count = loop_.gather(products_.data(), taps_, low, high, keys_.data());
            std::sort(keys_.begin(), keys_.begin() + count);
            for (int32_t k = 0; k < count; ++k) {
                const float product = products_[tap_of(keys_[k])];
                sum += scaled(product, scale);
                if (is_near(sum, total, task_.epsilon)) return bound_of(magnitude_of(product), task_.share);
            }
        }
    }

    // |S| < min |q|, which the first few taps refute as a rule.
    bool is_below_all(int64_t total, double scale) const {
        for (int32_t tap = 0; tap < taps_; ++tap) {
            if (places_[tap] >= 0 && absolute_of(scaled(products_[tap], scale)) <= absolute_of(total)) return false;
        }
        return true;
    }

    void give_to_image(const Tile& tile) {
        if (task_.inputs == nullptr) return;
        int32_t* image = image_.data() - static_cast<int64_t>(tile.group) * static_cast<int64_t>(image_.size());
        for (int32_t tap = 0; tap < taps_; ++tap) {
            if (of_inputs_[tap] != 0) image[places_[tap]] += of_inputs_[tap];
        }
        std::fill(of_inputs_.begin(), of_inputs_.end(), 0);
    }

    void give_image(const Tile& tile) {
        if (task_.inputs == nullptr) return;
        int32_t* inputs = task_.inputs + tile.sample * input_size(task_) +
                          static_cast<int64_t>(tile.group) * static_cast<int64_t>(image_.size());
        for (size_t i = 0; i < image_.size(); ++i) {
            if (image_[i] != 0) add_shared(inputs + i, image_[i]);
        }
        std::fill(image_.begin(), image_.end(), 0);
    }

    void give_weights(const Tile& tile) {
        const int64_t at = static_cast<int64_t>(tile.first) * taps_;
        const int64_t count = static_cast<int64_t>(tile.count) * taps_;
        const int64_t all = static_cast<int64_t>(task_.outputs) * taps_;
        for (int64_t i = 0; i < count; ++i) {
            const int32_t value = of_weights_[i];
            if (value == 0) continue;
            if (task_.signed_sum != nullptr) add_shared(task_.signed_sum + at + i, value);
            if (task_.absolute != nullptr) add_shared(task_.absolute + at + i, value < 0 ? -value : value);
            if (task_.per_sample != nullptr) task_.per_sample[tile.sample * all + at + i] += value;  // nobody else's
            of_weights_[i] = 0;
        }
    }

    const SliceTask& task_;
    const Loops& loop_;
    const int32_t taps_;
    int32_t real_taps_ = 0;            // of the window, those that are not padding
    std::vector<float> deltas_;        // of the window
    std::vector<int32_t> places_;      // of the window in the sample's input, -1 in the padding
    std::vector<float> products_;      // of the neuron
    std::vector<uint64_t> keys_;       // of some products
    std::vector<int32_t> of_inputs_;   // contributions to the window
    std::vector<int32_t> of_weights_;  // contributions to the weights of the tile
    std::vector<int32_t> image_;       // contributions to the input channels of the group
};

}  // namespace

void contributions(const SliceTask& task, const Execution& execution) {
    if (task.samples == 0 || (task.inputs == nullptr && !wants_weights(task))) return;
    const Tiles tiles(task, execution.threads);
    const int64_t products = static_cast<int64_t>(tiles.outputs()) * positions_of(task) * taps_of(task);
    const int64_t grain = std::max<int64_t>(1, kGrainProducts / products);
    const int64_t pieces = (tiles.count() + grain - 1) / grain;
    const int64_t busy = std::min<int64_t>(execution.threads, pieces);
    std::vector<Worker> workers;
    workers.reserve(busy);
    for (int64_t i = 0; i < busy; ++i) {
        workers.emplace_back(task, loops(execution.isa), tiles.outputs());
    }
    parallel_for(tiles.count(), grain, execution.threads, [&](int64_t begin, int64_t end, int worker) {
        for (int64_t index = begin; index < end; ++index) workers[worker].run(tiles.at(index));
    });
}

}  // namespace compdx::cpu
