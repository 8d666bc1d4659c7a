#include "cpu/threads.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace compdx {
namespace {

class Pool {
  public:
    explicit Pool(int process) : process_(process) {}

    int process() const { return process_; }

    // One loop at a time: two Python threads that search side by side take turns.
    void run(int64_t count, int64_t grain, int threads, void (*body)(void*, int64_t, int64_t, int), void* context) {
        std::lock_guard<std::mutex> turn(turn_);
        while (static_cast<int>(workers_.size()) < threads - 1) {
            const int worker = static_cast<int>(workers_.size()) + 1;
            workers_.emplace_back([this, worker] { serve(worker); });
            workers_.back().detach();
        }
        {
            std::lock_guard<std::mutex> lock(mutex_);
            job_ = {body, context, count, grain, threads};
            next_.store(0, std::memory_order_relaxed);
            open_ = true;
            ++generation_;
        }
        wake_.notify_all();
        work(0);
        // Only workers that have begun are waited for. Others may not get a core for milliseconds, while another library's threads
        // spin on it, and there is nothing left for them to do.
        std::unique_lock<std::mutex> lock(mutex_);
        open_ = false;
        done_.wait(lock, [this] { return running_ == 0; });
    }

  private:
    struct Job {
        void (*body)(void*, int64_t, int64_t, int) = nullptr;
        void* context = nullptr;
        int64_t count = 0;
        int64_t grain = 1;
        int threads = 1;
    };

    // Chunks get smaller towards the end, so that all threads end together. Large ones keep the threads out of each other's cache
    // lines, but a thread may lose its core in the middle of one.
    void work(int worker) {
        int64_t begin = next_.load(std::memory_order_relaxed);
        while (begin < job_.count) {
            const int64_t left = job_.count - begin;
            const int64_t share = std::clamp(left / (2 * job_.threads), job_.grain, 8 * job_.grain);
            const int64_t end = begin + std::min(left, share);
            if (!next_.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
            job_.body(job_.context, begin, end, worker);
            begin = next_.load(std::memory_order_relaxed);
        }
    }

    void serve(int worker) {
        uint64_t seen = 0;
        for (;;) {
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return generation_ != seen; });
                seen = generation_;
                if (!open_ || worker >= job_.threads) continue;
                ++running_;
            }
            work(worker);
            std::lock_guard<std::mutex> lock(mutex_);
            if (--running_ == 0) done_.notify_one();
        }
    }

    const int process_;
    std::mutex turn_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::condition_variable done_;
    std::vector<std::thread> workers_;
    std::atomic<int64_t> next_{0};
    Job job_;
    bool open_ = false;  // whether a worker may still begin
    int running_ = 0;    // workers that have begun and not ended
    uint64_t generation_ = 0;
};

// Never destroyed: workers may still wait on it when the process ends. A forked child must not touch its parent's pool, whose threads
// it does not have and whose locks may be held for ever.
Pool& pool() {
    static std::atomic<Pool*> current{nullptr};
    Pool* found = current.load(std::memory_order_acquire);
    const int process = getpid();
    while (found == nullptr || found->process() != process) {
        auto fresh = std::make_unique<Pool>(process);
        if (current.compare_exchange_strong(found, fresh.get(), std::memory_order_acq_rel)) return *fresh.release();
    }
    return *found;
}

}  // namespace

void parallel_for(int64_t count, int64_t grain, int threads, void (*body)(void*, int64_t, int64_t, int),
                  void* context) {
    if (count <= 0) return;
    const int64_t chunks = (count + grain - 1) / grain;
    if (threads > chunks) threads = static_cast<int>(chunks);
    if (threads <= 1) {
        body(context, 0, count, 0);
        return;
    }
    pool().run(count, grain, threads, body, context);
}

}  // namespace compdx
