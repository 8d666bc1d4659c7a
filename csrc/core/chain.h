// A Markov chain and its transitions. The record is stored, copied to and from devices and written to checkpoints as it is.
#pragma once

#include "core/rules.h"

namespace compdx {

enum class Status : uint8_t {
    idle = 0,    // the slot has no work
    fresh = 1,   // the next query is the seed itself
    active = 2,  // the next query is mutant step + 1
    ended = 3,   // waits to be harvested
};

inline namespace COMPDX_ISA_NAMESPACE {

// Whether the slot takes part in the next iteration.
COMPDX_HD bool is_working(Status status) { return status == Status::fresh || status == Status::active; }

}  // namespace COMPDX_ISA_NAMESPACE

enum class Kind : uint8_t { effective = 0, invalid = 1, seed = 2, non_finite = 3, exhausted = 4 };

constexpr uint8_t kNoOperator = 7;
constexpr uint8_t kTraceAccepted = 8;
constexpr uint32_t kChangeQ30 = 1073741;  // 1e-3: what the artifact calls a change of the confidence difference

struct Chain {
    uint64_t seed_index = 0;  // identity of the seed image
    int32_t row = -1;         // its place in the seed set
    uint32_t step = 0;        // mutants judged
    uint32_t accepted = 0;
    uint32_t states = 0;       // novel output states entered, the seed's own included
    uint32_t best_delta = 0;   // |confidence difference| of the current image, Q30
    uint32_t best_margin = 0;  // smaller margin of the two models on the current image, Q30
    int32_t seed_label = -1;
    int32_t original_label = -1;
    int32_t compressed_label = -1;
    uint32_t original_confidence = 0;  // Q30
    uint32_t compressed_confidence = 0;
    Status status = Status::idle;
    uint8_t current = 0;  // which of the slot's two buffers holds the current image
    uint8_t best_novel = 0;
    uint8_t last_operator = kNoOperator;  // of the last accepted mutant
    uint8_t pending = kNoOperator;        // of the mutant being judged
    Kind kind = Kind::exhausted;
    uint8_t non_finite = 0;  // bit 0 original, bit 1 compressed
    uint8_t linf = 0;        // largest change in grey levels, filled in at harvest
    uint32_t reserved = 0;
    uint32_t credit[kOperators] = {};
    uint32_t total[kOperators] = {};
    int64_t l2_squared = 0;  // squared distance to the seed in grey levels, filled in at harvest
};
static_assert(sizeof(Chain) == 128, "checkpoints and devices rely on the layout");

inline namespace COMPDX_ISA_NAMESPACE {

COMPDX_HD Chain begin_chain(uint64_t seed_index, int32_t row) {
    Chain chain;
    chain.seed_index = seed_index;
    chain.row = row;
    chain.status = Status::fresh;
    return chain;
}

// What the two models said about one image.
struct Verdict {
    uint8_t non_finite;
    int32_t original_label;
    int32_t compressed_label;
    uint32_t original_confidence;
    uint32_t compressed_confidence;
    uint32_t margin;  // top-1 less top-2 probability, Q30, the smaller of the two models'
};

// From the two rows of scores; Row has finite, label, confidence and margin.
template <class Row>
COMPDX_HD Verdict make_verdict(const Row& original, const Row& compressed) {
    return {static_cast<uint8_t>((original.finite ? 0 : 1) | (compressed.finite ? 0 : 2)),
            original.label,
            compressed.label,
            original.confidence,
            compressed.confidence,
            original.margin < compressed.margin ? original.margin : compressed.margin};
}

COMPDX_HD uint32_t absolute_delta(const Verdict& v) {
    return v.original_confidence > v.compressed_confidence ? v.original_confidence - v.compressed_confidence
                                                           : v.compressed_confidence - v.original_confidence;
}

COMPDX_HD void end_chain(Chain& chain, Kind kind) {
    chain.kind = kind;
    chain.status = Status::ended;
}

// First half of a judgement: takes the verdict down and ends the chain when it is a finding. Returns whether the chain goes on, in
// which case the caller looks the state up in the coverage and calls settle().
COMPDX_HD bool record_verdict(Chain& chain, const Verdict& verdict) {
    const bool is_seed = chain.status == Status::fresh;
    chain.non_finite = verdict.non_finite;
    chain.original_label = verdict.original_label;
    chain.compressed_label = verdict.compressed_label;
    chain.original_confidence = verdict.original_confidence;
    chain.compressed_confidence = verdict.compressed_confidence;
    if (is_seed) {
        chain.seed_label = verdict.original_label;
    } else {
        chain.step += 1;
        chain.total[chain.pending] += 1;
    }
    if (verdict.non_finite != 0) {
        end_chain(chain, Kind::non_finite);
        return false;
    }
    if (verdict.original_label != verdict.compressed_label) {
        if (is_seed) {
            end_chain(chain, Kind::seed);
        } else {
            chain.credit[chain.pending] += 1;
            end_chain(chain, verdict.original_label == chain.seed_label ? Kind::effective : Kind::invalid);
        }
        return false;
    }
    return true;
}

COMPDX_HD bool accepts(const Rules& rules, const Chain& chain, uint32_t delta, uint32_t margin, bool novel) {
    switch (rules.acceptance) {
        case Acceptance::margin:
            return margin <= chain.best_margin;
        case Acceptance::improve: {
            const uint64_t fitness = delta + (novel ? 1ull << 30 : 0);
            return fitness >= chain.best_delta + (chain.best_novel != 0 ? 1ull << 30 : 0);
        }
        case Acceptance::change: {
            const uint32_t moved = delta > chain.best_delta ? delta - chain.best_delta : chain.best_delta - delta;
            return moved > kChangeQ30 || novel;
        }
        case Acceptance::always:
            return true;
        default:
            return false;
    }
}

// Second half: acceptance, statistics, budget. Returns the trace byte of a mutant (of no use for the seed's own query).
COMPDX_HD uint8_t settle(const Rules& rules, Chain& chain, const Verdict& verdict, bool novel) {
    const uint32_t delta = absolute_delta(verdict);
    uint8_t trace = 0;
    chain.states += novel;
    if (chain.status == Status::fresh) {
        chain.status = Status::active;
        // The published code starts from no difference at all, so that its first change always counts.
        chain.best_delta = rules.acceptance == Acceptance::change ? 0 : delta;
        chain.best_margin = verdict.margin;
        chain.best_novel = 0;
    } else {
        trace = chain.pending;
        if (accepts(rules, chain, delta, verdict.margin, novel)) {
            trace |= kTraceAccepted;
            chain.accepted += 1;
            chain.credit[chain.pending] += 1;
            chain.last_operator = chain.pending;
            chain.best_delta = delta;
            chain.best_margin = verdict.margin;
            chain.best_novel = novel;
            chain.current ^= 1;
        }
    }
    if (chain.step + 1 >= rules.budget) end_chain(chain, Kind::exhausted);
    return trace;
}

// The buffer that holds the image which ended the chain.
COMPDX_HD int final_buffer(const Chain& chain) { return chain.step == 0 ? chain.current : chain.current ^ 1; }

}  // namespace COMPDX_ISA_NAMESPACE
}  // namespace compdx
