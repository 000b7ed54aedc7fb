// Dropout of weights by place: whether a pair is kept is a hash, mixed by the finalizer of Wellons' "lowbias32", so that every
// pass and every engine drops the same (engines/dropout.py).
#pragma once

#include "adjust.h"

namespace SL_ISA {

template <class Bits>
inline Bits mix(Bits x) {
    x = (x ^ (x >> 16)) * 0x7feb352du;
    x = (x ^ (x >> 15)) * 0x846ca68bu;
    return x ^ (x >> 16);
}

inline uint32_t row_hash(const sl_lookup& l, int64_t b, int64_t h, int64_t i) {
    return mix(mix(mix(l.dropout.seed + (uint32_t)b) + (uint32_t)h) + (uint32_t)(l.query_position + i));
}

inline uint32_t key_hash(const sl_lookup& l, int64_t j) { return (uint32_t)(l.key_position + j) * 0x9e3779b1u; }

// A block of transposed weights (or of what multiplies them), in place.
inline void drop(const sl_lookup& l, const Block& at, float* weights) {
    if (!l.dropout.on) return;
    for (int64_t r = at.lane0; r < at.lane1; r += LANES) {
        U row{};
        for (int n = 0; n < LANES; ++n) row[n] = row_hash(l, at.b, at.h, at.first + r + n);
        for (int64_t j = 0; j < at.keys; ++j) {
            float* w = weights + j * ROW + r;
            store(w, mix(row + key_hash(l, at.key + j)) >= l.dropout.threshold ? load(w) * l.dropout.scale : F{});
        }
    }
}

// The weights of one query over keys key … key + keys, in place.
inline void drop_row(const sl_lookup& l, int64_t b, int64_t h, int64_t i, int64_t key, int64_t keys, float* weights) {
    if (!l.dropout.on) return;
    const uint32_t row = row_hash(l, b, h, i);
    for (int64_t j = 0; j < keys; ++j) weights[j] = mix(row + key_hash(l, key + j)) >= l.dropout.threshold ? weights[j] * l.dropout.scale : 0;
}

}  // namespace SL_ISA
