// What each key received: weights summed over queries, in a second pass that knows every query's maximum and normalizer.
#pragma once

#include "moments.h"
#include "scores.h"

namespace SL_ISA {

// Adds e^(s - m) / Z, summed over the panel's queries, to each key's sum.
template <bool MASKED>
void add_weights(const float* scores, const uint8_t* bits, Part part, const float* m, const float* inverse_z, float* sums) {
    for (int64_t j = 0; j < part.keys; ++j) {
        F sum{};
        for (int64_t lane = part.lane0; lane < part.lane1; lane += LANES) {
            F weight = exp(load(scores + j * ROW + lane) - load(m + lane)) * load(inverse_z + lane);
            if (MASKED) weight = visible(bits, j, lane) ? weight : F{};
            sum += weight;
        }
        sums[j] += total(sum);
    }
}

// Blocks of keys block0 … block1 of head h. False where something that is not finite was met.
inline bool received_part(const sl_lookup& l, const float* max_logit, const float* inverse_z, float* out, int64_t b, int64_t h, int64_t block0,
                          int64_t block1) {
    const int64_t panels = (l.queries + SL_QUERIES - 1) / SL_QUERIES, g = h / (l.heads / l.kv_heads), base = (b * l.heads + h) * l.queries;
    Scratch scratch;
    ScoreMaker make(l, 1, scratch);
    float* scores = scratch.floats(SL_KEYS * ROW);
    float* m = scratch.floats(SL_QUERIES);
    float* share = scratch.floats(SL_QUERIES);
    for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t first = panel * SL_QUERIES, rows = rows_of(l, first), lanes = lanes_of(rows);
        const int64_t list = (int64_t)l.blocks.pattern[b * l.heads + h] * panels + panel;
        if (!make.take_queries(l, 0, b, h, first, rows)) return false;
        for (int64_t r = 0; r < SL_QUERIES; ++r) {
            m[r] = r < rows && max_logit[base + first + r] > -INF ? max_logit[base + first + r] : 1e30f;  // others have no weight
            share[r] = r < rows ? inverse_z[base + first + r] : 0;
        }
        for (int64_t entry = l.blocks.start[list]; entry < l.blocks.start[list + 1]; ++entry) {
            const int64_t block = l.blocks.block[entry];
            if (block < block0 || block >= block1) continue;
            const int64_t key = block * SL_KEYS, keys = l.keys - key < SL_KEYS ? l.keys - key : SL_KEYS;
            const float* k = row_of(l.key, b, g, key);
            if (!all_finite(k, l.key.row, keys, l.width)) return false;
            make.take_keys(l, k, keys);
            const uint8_t* hidden = bits_of(l.blocks, entry);
            for_each_part(hidden, keys, lanes, [&](Part part) {
                make.scores(l, 0, part, {b, h, key + part.key, part.keys, first, rows, part.lane0, part.lane1}, scores);
                float* sums = out + (b * l.heads + h) * l.keys + key + part.key;
                if (hidden)
                    add_weights<true>(scores, from_key(hidden, part.key), part, m, share, sums);
                else
                    add_weights<false>(scores, nullptr, part, m, share, sums);
            });
        }
    }
    return all_finite(out + (b * l.heads + h) * l.keys + block0 * SL_KEYS, 0, 1, std::min(block1 * SL_KEYS, l.keys) - block0 * SL_KEYS);
}

}  // namespace SL_ISA
