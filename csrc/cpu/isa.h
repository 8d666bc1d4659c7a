// Instruction sets the loops are compiled for, and the choice at run time.
#pragma once

namespace compdx {

enum class Isa { scalar = 0, avx2 = 1, avx512 = 2 };
constexpr int kIsas = 3;

const char* isa_name(Isa isa);
bool isa_available(Isa isa);  // compiled in, and this machine has it
Isa best_isa();

}  // namespace compdx
