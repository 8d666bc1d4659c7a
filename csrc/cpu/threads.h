// A small pool: parallel_for over a range, caller included, work handed out in chunks.
#pragma once

#include <cstdint>
#include <type_traits>

namespace compdx {

// Calls body(context, begin, end, worker) over [0, count) in chunks of at most `grain`; worker < threads tells which scratch to use.
// Results must not depend on the split, and body must not throw. Safe after fork(): the child starts a pool of its own.
void parallel_for(int64_t count, int64_t grain, int threads, void (*body)(void*, int64_t, int64_t, int), void* context);

template <class Body>
void parallel_for(int64_t count, int64_t grain, int threads, Body&& body) {
    auto call = [](void* context, int64_t begin, int64_t end, int worker) {
        (*static_cast<std::remove_reference_t<Body>*>(context))(begin, end, worker);
    };
    parallel_for(count, grain, threads, +call, &body);
}

}  // namespace compdx
