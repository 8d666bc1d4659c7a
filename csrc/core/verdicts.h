// Verdicts on a batch, without chains.
#pragma once

#include "core/chain.h"

namespace compdx {

// Everything is [count] pairs, the original model first.
struct VerdictTask {
    const float* original;    // [count][classes]
    const float* compressed;  // [count][classes]
    int64_t count;
    int32_t classes;
    Scores original_scores;
    Scores compressed_scores;
    int32_t* labels;        // [count][2], -1 where the scores are not finite
    uint32_t* confidences;  // [count][2], Q30, 0 where the scores are not finite
    uint8_t* non_finite;    // [count], bit 0 original, bit 1 compressed
};

inline namespace COMPDX_ISA_NAMESPACE {

COMPDX_HD void store_verdict(const VerdictTask& task, int64_t i, const Verdict& verdict) {
    task.labels[2 * i] = verdict.original_label;
    task.labels[2 * i + 1] = verdict.compressed_label;
    task.confidences[2 * i] = verdict.original_confidence;
    task.confidences[2 * i + 1] = verdict.compressed_confidence;
    task.non_finite[i] = verdict.non_finite;
}

}  // namespace COMPDX_ISA_NAMESPACE
}  // namespace compdx
