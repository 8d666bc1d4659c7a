#include "cpu/isa.h"

#include "cpu/loops.h"

namespace compdx {

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::avx512:
            return "avx512";
        case Isa::avx2:
            return "avx2";
        default:
            return "scalar";
    }
}

bool isa_available(Isa isa) {
#if defined(__x86_64__)
    if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
    if (isa == Isa::avx512) {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    }
#endif
    return isa == Isa::scalar;
}

Isa best_isa() {
    if (isa_available(Isa::avx512)) return Isa::avx512;
    return isa_available(Isa::avx2) ? Isa::avx2 : Isa::scalar;
}

const Loops& loops(Isa isa) {
#if defined(__x86_64__)
    if (isa == Isa::avx512) return compiled_for::avx512::loops();
    if (isa == Isa::avx2) return compiled_for::avx2::loops();
#endif
    (void)isa;
    return compiled_for::scalar::loops();
}

}  // namespace compdx
