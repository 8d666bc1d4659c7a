// Metropolis choice of the operator, in closed form: no rejection loop. docs/arithmetic.md section 3; DFlare section 4.
#pragma once

#include "core/chain.h"
#include "core/philox.h"
#include "core/tables.h"

namespace compdx {
inline namespace COMPDX_ISA_NAMESPACE {

// Permutation number `code` of the operators (Lehmer code).
COMPDX_HD void permute_operators(uint32_t code, uint8_t* order) {
    uint8_t left[kOperators];
    for (int i = 0; i < kOperators; ++i) left[i] = static_cast<uint8_t>(i);
    uint32_t factorial = 720;
    for (int i = 0; i < kOperators; ++i) {
        const int pick = static_cast<int>(code / factorial);
        code %= factorial;
        order[i] = left[pick];
        for (int j = pick; j + 1 < kOperators - i; ++j) left[j] = left[j + 1];
        if (i < kOperators - 1) factorial /= static_cast<uint32_t>(kOperators - 1 - i);
    }
}

// Better: larger credit / total; equal and non-zero: larger total (what credit / (total + 1e-7) does).
COMPDX_HD bool ranks_before(const Chain& chain, int a, int b) {
    const uint64_t left = static_cast<uint64_t>(chain.credit[a]) * chain.total[b];
    const uint64_t right = static_cast<uint64_t>(chain.credit[b]) * chain.total[a];
    if (chain.credit[a] == 0 || chain.credit[b] == 0) return chain.credit[a] > chain.credit[b];
    return left != right ? left > right : chain.total[a] > chain.total[b];
}

// Operators from best to worst; equals in random order.
COMPDX_HD void rank_operators(const Chain& chain, uint32_t word, uint8_t* order) {
    permute_operators(below(word, 5040), order);
    for (int i = 1; i < kOperators; ++i) {  // stable insertion sort
        const uint8_t op = order[i];
        int j = i;
        for (; j > 0 && ranks_before(chain, op, order[j - 1]); --j) order[j] = order[j - 1];
        order[j] = op;
    }
}

COMPDX_HD int threshold_row(Selection selection, bool accepted_before, int current_rank) {
    if (!accepted_before || selection == Selection::uniform) return 8;
    return selection == Selection::rank ? 7 : current_rank;
}

COMPDX_HD Operator choose_operator(const Rules& rules, const Chain& chain, const Stream& stream) {
    const Words words = stream.words(Purpose::choose, 0);
    uint8_t order[kOperators];
    rank_operators(chain, words.w[1], order);
    int current = 0;
    for (int i = 0; i < kOperators; ++i) current = order[i] == chain.last_operator ? i : current;
    const int row = threshold_row(rules.selection, chain.last_operator != kNoOperator, current);
    const uint32_t* thresholds = selection_thresholds() + row * kOperators;
    int rank = 0;
    for (int j = 0; j < kOperators - 1; ++j) rank += words.w[0] >= thresholds[j];
    return static_cast<Operator>(order[rank]);
}

}  // namespace COMPDX_ISA_NAMESPACE
}  // namespace compdx
