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
constexpr uint8_t kTraceBeyond = 16;  // of an operator: its mutant became the far image
constexpr int kTraceWeightShift = 4;  // of a blend: its weight is in the upper half
constexpr uint32_t kBlendSteps = 16;  // weights are sixteenths of the way to the far image
constexpr uint8_t kNoBuffer = 2;      // `far` of a chain without a far image: a third buffer, which then nobody uses
constexpr uint32_t kChangeQ30 = 1073741;  // 1e-3: what the artifact calls a change of the confidence difference

// The search between the current image and a mutant that both models put beyond the boundary.
struct Bisection {
    uint32_t far_margin;  // Q30
    uint8_t far;          // the buffer of the far image
    uint8_t left;         // blends still to be tried; 0: no search is under way
    uint16_t unused;
};

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
    uint8_t current = 0;  // which of the slot's buffers holds the current image; once ended, the image it ended on
    uint8_t best_novel = 0;
    uint8_t last_operator = kNoOperator;  // of the last accepted mutant
    uint8_t pending = kNoOperator;        // of the mutant being judged
    Kind kind = Kind::exhausted;
    uint8_t non_finite = 0;  // bit 0 original, bit 1 compressed
    uint8_t linf = 0;        // largest change in grey levels, filled in at harvest
    uint32_t reserved = 0;
    uint32_t credit[kOperators] = {};
    uint32_t total[kOperators] = {};
    union {
        int64_t l2_squared = 0;  // squared distance to the seed in grey levels, filled in at harvest
        Bisection bisection;     // until the chain ends
    };
};
static_assert(sizeof(Chain) == 128, "checkpoints and devices rely on the layout");

inline namespace COMPDX_ISA_NAMESPACE {

COMPDX_HD Chain begin_chain(uint64_t seed_index, int32_t row) {
    Chain chain;
    chain.seed_index = seed_index;
    chain.row = row;
    chain.status = Status::fresh;
    chain.bisection = {0, kNoBuffer, 0, 0};
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

// The buffer of the mutant that is being judged: neither the current nor the far image's.
COMPDX_HD int mutant_buffer(const Chain& chain) { return 3 - chain.current - chain.bisection.far; }

COMPDX_HD bool bisects(const Chain& chain) { return chain.bisection.left > 0; }

// How far towards the far image the next blend lies, in sixteenths: where the boundary is if the margins fall linearly towards it.
COMPDX_HD uint32_t blend_weight(const Chain& chain) {
    const uint32_t near = chain.best_margin >> 4;  // Q26, so that 32 bits are enough for all of this
    const uint32_t sum = near + (chain.bisection.far_margin >> 4);
    const uint32_t weight = sum == 0 ? kBlendSteps / 2 : (kBlendSteps * near + sum / 2) / sum;
    return weight < 1 ? 1 : (weight > kBlendSteps - 1 ? kBlendSteps - 1 : weight);
}

// The byte of a mutant that was neither accepted nor found beyond the boundary.
COMPDX_HD uint8_t plain_trace(const Chain& chain) {
    const uint32_t weight = chain.pending == kBlend ? blend_weight(chain) << kTraceWeightShift : 0;
    return static_cast<uint8_t>(chain.pending | weight);
}

COMPDX_HD void end_chain(Chain& chain, Kind kind) {
    if (chain.step > 0) chain.current = static_cast<uint8_t>(mutant_buffer(chain));
    chain.l2_squared = 0;
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
        if (chain.pending != kBlend) chain.total[chain.pending] += 1;
    }
    if (verdict.non_finite != 0) {
        end_chain(chain, Kind::non_finite);
        return false;
    }
    if (verdict.original_label != verdict.compressed_label) {
        if (!is_seed && chain.pending != kBlend) chain.credit[chain.pending] += 1;
        const Kind found = verdict.original_label == chain.seed_label ? Kind::effective : Kind::invalid;
        end_chain(chain, is_seed ? Kind::seed : found);
        return false;
    }
    return true;
}

COMPDX_HD void move_current(Chain& chain, uint32_t delta, uint32_t margin, bool novel) {
    chain.accepted += 1;
    chain.best_delta = delta;
    chain.best_margin = margin;
    chain.best_novel = novel;
    chain.current = static_cast<uint8_t>(mutant_buffer(chain));
}

COMPDX_HD void move_far(Chain& chain, uint32_t margin) {
    chain.bisection.far = static_cast<uint8_t>(mutant_buffer(chain));
    chain.bisection.far_margin = margin;
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
    uint8_t trace = plain_trace(chain);
    chain.states += novel;
    if (chain.status == Status::fresh) {
        chain.status = Status::active;
        // The published code starts from no difference at all, so that its first change always counts.
        chain.best_delta = rules.acceptance == Acceptance::change ? 0 : delta;
        chain.best_margin = verdict.margin;
        chain.best_novel = 0;
    } else if (chain.pending == kBlend) {
        chain.bisection.left -= 1;
        if (verdict.original_label == chain.seed_label) {
            trace |= kTraceAccepted;
            move_current(chain, delta, verdict.margin, novel);
        } else {
            move_far(chain, verdict.margin);
        }
    } else if (rules.bisect > 0 && verdict.original_label != chain.seed_label) {
        trace |= kTraceBeyond;
        chain.credit[chain.pending] += 1;
        chain.bisection.left = static_cast<uint8_t>(rules.bisect);
        move_far(chain, verdict.margin);
    } else if (accepts(rules, chain, delta, verdict.margin, novel)) {
        trace |= kTraceAccepted;
        chain.credit[chain.pending] += 1;
        chain.last_operator = chain.pending;
        move_current(chain, delta, verdict.margin, novel);
    }
    if (chain.step + 1 >= rules.budget) end_chain(chain, Kind::exhausted);
    return trace;
}

}  // namespace COMPDX_ISA_NAMESPACE
}  // namespace compdx
