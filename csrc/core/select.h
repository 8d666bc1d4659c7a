// Metropolis choice of the operator, in closed form: no rejection loop. docs/arithmetic.md section 3; DFlare section 4.
#pragma once

#include "core/chain.h"
#include "core/operators.h"
#include "core/philox.h"
#include "core/tables.h"

namespace compdx {
inline namespace COMPDX_ISA_NAMESPACE {

// Place of every operator in a random permutation, four bits each (Lehmer code). A word and not an array: a GPU's registers cannot be
// indexed.
COMPDX_HD uint32_t permuted_places(uint32_t word) {
    uint32_t code = below(word, 5040);
    uint32_t left = 0x6543210u;
    uint32_t places = 0;
    uint32_t factorial = 720;
    for (int i = 0; i < kOperators; ++i) {
        const uint32_t pick = 4 * (code / factorial);
        code %= factorial;
        places |= static_cast<uint32_t>(i) << 4 * (left >> pick & 15u);
        const uint32_t kept = (1u << pick) - 1;
        left = (left & kept) | (left >> 4 & ~kept);
        if (i < kOperators - 1) factorial /= static_cast<uint32_t>(kOperators - 1 - i);
    }
    return places;
}

COMPDX_HD int place_of(uint32_t places, int op) { return static_cast<int>(places >> 4 * op & 15u); }

// Better: larger credit / total; equal and non-zero: larger total (what credit / (total + 1e-7) does); still equal: random.
COMPDX_HD bool ranks_before(const Chain& chain, uint32_t places, int a, int b) {
    const bool both = chain.credit[a] != 0 && chain.credit[b] != 0;
    const uint64_t left = both ? static_cast<uint64_t>(chain.credit[a]) * chain.total[b] : chain.credit[a];
    const uint64_t right = both ? static_cast<uint64_t>(chain.credit[b]) * chain.total[a] : chain.credit[b];
    if (left != right) return left > right;
    if (both && chain.total[a] != chain.total[b]) return chain.total[a] > chain.total[b];
    return place_of(places, a) < place_of(places, b);
}

// 0 is best.
COMPDX_HD int operator_rank(const Chain& chain, uint32_t places, int op) {
    int rank = 0;
    for (int other = 0; other < kOperators; ++other) rank += other != op && ranks_before(chain, places, other, op);
    return rank;
}

// All ranks, four bits each.
COMPDX_HD uint32_t operator_ranks(const Chain& chain, uint32_t places) {
    uint32_t ranks = 0;
    for (int a = 0; a < kOperators; ++a) {
        for (int b = a + 1; b < kOperators; ++b) ranks += 1u << 4 * (ranks_before(chain, places, a, b) ? b : a);
    }
    return ranks;
}

COMPDX_HD int threshold_row(Selection selection, bool accepted_before, int current_rank) {
    if (!accepted_before || selection == Selection::uniform) return 8;
    return selection == Selection::rank ? 7 : current_rank;
}

// The rank of the next operator.
COMPDX_HD int drawn_rank(Selection selection, bool accepted_before, int current_rank, uint32_t word) {
    const uint32_t* thresholds =
        selection_thresholds() + threshold_row(selection, accepted_before, current_rank) * kOperators;
    int rank = 0;
    for (int j = 0; j < kOperators - 1; ++j) rank += word >= thresholds[j];
    return rank;
}

COMPDX_HD Operator choose_operator(const Rules& rules, const Chain& chain, const Stream& stream) {
    const Words words = stream_words(stream, Purpose::choose, 0);
    const uint32_t ranks = operator_ranks(chain, permuted_places(words.w[1]));
    const int rank = drawn_rank(rules.selection, chain.last_operator != kNoOperator,
                                place_of(ranks, chain.last_operator), words.w[0]);
    int chosen = 0;
    while (place_of(ranks, chosen) != rank) ++chosen;
    return static_cast<Operator>(chosen);
}

// The random numbers of a chain's next mutant.
COMPDX_HD Stream stream_of_next(const Rules& rules, const Chain& chain) {
    return {rules.seed, chain.seed_index, chain.step + 1};
}

// Draws what choose_operator chose, or the next blend.
COMPDX_HD Draw draw_next(const Rules& rules, const Chain& chain, Operator op, const Stream& stream) {
    if (op == kBlend) return {kBlend, static_cast<int32_t>(blend_weight(chain)), 0, 0};
    return draw_operator(op, stream, rules.skip_identity != 0, rules.shape.size());
}

}  // namespace COMPDX_ISA_NAMESPACE
}  // namespace compdx
