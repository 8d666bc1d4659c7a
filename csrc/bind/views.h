// Memory that Python hands over: an address and an extent, checked before any native code follows it. The caller keeps the owner alive
// for the duration of the call; ops/chains.py keeps the arrays of a search as long as the Slots that hold their addresses. On CUDA the
// caching allocator gives freed memory only to later work of the same stream.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace compdx::bind {

namespace py = pybind11;

struct View {
    uintptr_t address = 0;
    int64_t bytes = 0;

    template <class T>
    T* as(int64_t count, const char* name) const {
        const int64_t wanted = count * static_cast<int64_t>(sizeof(T));
        if (count < 0 || bytes < wanted) {
            throw std::invalid_argument(std::string(name) + ": expected at least " + std::to_string(wanted) +
                                        " bytes, got " + std::to_string(bytes));
        }
        if (address % alignof(T) != 0) {
            throw std::invalid_argument(std::string(name) + ": expected an address aligned to " +
                                        std::to_string(alignof(T)) + " bytes");
        }
        if (address == 0 && wanted > 0) throw std::invalid_argument(std::string(name) + ": null address");
        return reinterpret_cast<T*>(address);
    }
};

inline View view(const py::tuple& pair) { return {pair[0].cast<uintptr_t>(), pair[1].cast<int64_t>()}; }

}  // namespace compdx::bind
