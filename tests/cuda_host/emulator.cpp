#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "cuda_runtime.h"

dim3 gridDim, blockDim, blockIdx, threadIdx;

// The name under which common.cuh declares it.
namespace compdx::cuda {
alignas(16) thread_local uint8_t dynamic_memory[227 * 1024];
}  // namespace compdx::cuda

namespace emulator {
namespace {

constexpr size_t kStackBytes = 64 * 1024;

enum class State { ready, at_block_barrier, at_warp, done };

// Started through its context, which brings the stack; resumed by jumps, which unlike swapcontext() make no system call.
struct Fibre {
    ucontext_t context;
    jmp_buf place;
    bool started;
    std::unique_ptr<char[]> stack;
    State state;
};

struct Warp {
    uint64_t deposits[2][32];  // a lane may reach the next exchange while others still read from this one
    int waiting;
    int phase;
};

Order order = Order::ascending;
std::mt19937 shuffler(1);
std::vector<Fibre> fibres;
std::vector<Warp> warps;
jmp_buf scheduler;
const std::function<void()>* current_body = nullptr;
unsigned running = 0;

[[noreturn]] void fail(const char* what) {
    std::fprintf(stderr, "block %u, thread %u: %s\n", blockIdx.x, running, what);
    std::abort();
}

void wait_in(State state) {
    fibres[running].state = state;
    if (_setjmp(fibres[running].place) == 0) _longjmp(scheduler, 1);
}

void start() {
    (*current_body)();
    fibres[running].state = State::done;
    _longjmp(scheduler, 1);
}

// Runs until the fibre waits or is done.
__attribute__((noinline)) void resume(Fibre& fibre) {
    if (_setjmp(scheduler) != 0) return;
    if (fibre.started) _longjmp(fibre.place, 1);
    fibre.started = true;
    setcontext(&fibre.context);
}

void prepare(unsigned threads) {
    while (fibres.size() < threads) {
        fibres.emplace_back();
        fibres.back().stack = std::make_unique<char[]>(kStackBytes);
    }
    warps.assign((threads + 31) / 32, Warp());
    for (unsigned i = 0; i < threads; ++i) {
        Fibre& fibre = fibres[i];
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.get();
        fibre.context.uc_stack.ss_size = kStackBytes;
        makecontext(&fibre.context, start, 0);
        fibre.started = false;
        fibre.state = State::ready;
    }
}

// Until none of them can go on without the others.
void run_together(std::vector<unsigned>& threads) {
    for (bool progress = true; progress;) {
        progress = false;
        if (order == Order::shuffled) std::shuffle(threads.begin(), threads.end(), shuffler);
        for (unsigned thread : threads) {
            if (fibres[thread].state != State::ready) continue;
            progress = true;
            running = thread;
            threadIdx = dim3(thread);
            resume(fibres[thread]);
        }
    }
}

unsigned count_in(State state, unsigned threads) {
    return std::count_if(fibres.begin(), fibres.begin() + threads,
                         [=](const Fibre& fibre) { return fibre.state == state; });
}

void run_block(unsigned threads) {
    prepare(threads);
    // In the first two orders a warp runs as far ahead of the others as the barriers let it.
    std::vector<unsigned> together(order == Order::shuffled ? threads : 32);
    for (;;) {
        for (unsigned group = 0; group < threads; group += together.size()) {
            for (unsigned i = 0; i < together.size(); ++i) {
                together[i] = order == Order::descending ? threads - 1 - group - i : group + i;
            }
            run_together(together);
        }
        if (count_in(State::done, threads) == threads) return;
        if (count_in(State::at_block_barrier, threads) < threads) fail("waits at a barrier that not all threads reach");
        for (unsigned i = 0; i < threads; ++i) fibres[i].state = State::ready;
    }
}

}  // namespace

void set_order(Order chosen) { order = chosen; }

int lane() { return static_cast<int>(running % 32); }

void block_barrier() { wait_in(State::at_block_barrier); }

const uint64_t* exchange(unsigned mask, uint64_t value) {
    if (mask != 0xffffffffu) fail("only whole warps may exchange");
    Warp& warp = warps[running / 32];
    uint64_t* deposits = warp.deposits[warp.phase];
    deposits[lane()] = value;
    warp.waiting += 1;
    if (warp.waiting < 32) {
        wait_in(State::at_warp);
        return deposits;
    }
    warp.waiting = 0;
    warp.phase ^= 1;
    for (unsigned i = running / 32 * 32; i < running / 32 * 32 + 32; ++i) {
        if (i != running) fibres[i].state = State::ready;
    }
    return deposits;
}

void run(unsigned blocks, unsigned threads, size_t shared, const std::function<void()>& body) {
    if (threads % 32 != 0) fail("a CTA of broken warps");
    current_body = &body;
    gridDim = dim3(blocks);
    blockDim = dim3(threads);
    std::vector<unsigned> turns(blocks);
    std::iota(turns.begin(), turns.end(), 0u);
    if (order == Order::descending) std::reverse(turns.begin(), turns.end());
    if (order == Order::shuffled) std::shuffle(turns.begin(), turns.end(), shuffler);
    for (const unsigned block : turns) {
        blockIdx = dim3(block);
        std::memset(compdx::cuda::dynamic_memory, 0xa5, shared);
        run_block(threads);
    }
}

}  // namespace emulator
