// The next query of every chain, one CTA each; beside it the same two steps without chains.
#include "cuda/choose.cuh"
#include "cuda/input.cuh"
#include "cuda/launch.h"
#include "cuda/operators.cuh"

namespace compdx::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kThreadsOfLarge = 256;
constexpr int32_t kLargeImage = 4096;
// Large CTAs that fit on a multiprocessor at once: 64 registers a thread are what the networks of the medians need.
constexpr int kResident = 4;

unsigned threads_for(const Shape& shape) { return shape.size() > kLargeImage ? kThreadsOfLarge : kThreads; }

__global__ void __launch_bounds__(kThreadsOfLarge, kResident)
    mutate_kernel(const __grid_constant__ Rules rules, const __grid_constant__ Slots slots,
                  const __grid_constant__ Input input) {
    __shared__ Draw draw;
    const int64_t slot = blockIdx.x;
    Chain& chain = slots.chains[slot];
    const Status status = chain.status;
    if (!is_working(status)) return;  // nobody reads the scores of this slot
    const int32_t pixels = rules.shape.size();
    const uint8_t* seed = slots.seed(chain.row, pixels);
    uint8_t* image = slots.image(chain.current, slot);
    if (status == Status::fresh) {
        copy_bytes(seed, image, pixels);
    } else {
        const Stream stream = stream_of_next(rules, chain);
        if (warp_index() == 0) draw_by_warp(rules, chain, draw);
        __syncthreads();
        const uint8_t* parent = image;
        const uint8_t* far = slots.image(chain.bisection.far, slot);
        image = slots.image(mutant_buffer(chain), slot);
        mutate_image({draw, stream, rules.shape, rules.overflow, rules.linf, parent, seed, far, image});
    }
    __syncthreads();
    write_input(image, rules.shape, input, slot);
}

__global__ void __launch_bounds__(kThreadsOfLarge, kResident) apply_kernel(const __grid_constant__ ApplyTask task) {
    __shared__ Draw draw;
    const int64_t i = blockIdx.x;
    const int32_t pixels = task.shape.size();
    const Stream stream = {task.seed, task.indices[i], task.steps[i]};
    if (threadIdx.x == 0) {
        draw = draw_operator(task.op, stream, task.skip_identity, pixels);
        if (task.size >= 0) draw.size = task.size;
    }
    __syncthreads();
    const uint8_t* origin = task.origins + (task.one_origin ? 0 : i * pixels);
    mutate_image({draw, stream, task.shape, task.overflow, task.linf, task.images + i * pixels, origin, origin,
                  task.out + i * pixels});
}

__global__ void __launch_bounds__(kThreadsOfLarge)
    normalize_kernel(const uint8_t* images, const __grid_constant__ Shape shape, const __grid_constant__ Input input) {
    const int64_t i = blockIdx.x;
    write_input(images + i * shape.size(), shape, input, i);
}

}  // namespace

void mutate(const Rules& rules, const Slots& slots, const Input& input, void* stream) {
    if (slots.count == 0) return;
    launch("mutate", mutate_kernel, {blocks_for(slots.count, 1, "mutate"), threads_for(rules.shape)}, stream, rules,
           slots, input);
}

void apply(const ApplyTask& task, void* stream) {
    if (task.count == 0) return;
    launch("apply", apply_kernel, {blocks_for(task.count, 1, "apply"), threads_for(task.shape)}, stream, task);
}

void normalize(const uint8_t* images, int64_t count, const Shape& shape, const Input& input, void* stream) {
    if (count == 0) return;
    launch("normalize", normalize_kernel, {blocks_for(count, 1, "normalize"), threads_for(shape)}, stream, images,
           shape, input);
}

}  // namespace compdx::cuda
