// The forward pass of one panel of queries: scores, weights and weighted sum of one block of keys after another, each block
// in cache from the product that makes its scores to the one that uses them up (online softmax, Milakov & Gimelshein 2018).
#pragma once

#include <atomic>

#include "drop.h"
#include "moments.h"
#include "readings.h"
#include "scores.h"

namespace SL_ISA {

// False where something that is not finite was met. checked: (B, Hkv, blocks) which blocks of keys and values are known to be
// finite, shared by all panels.
inline bool forward_panel(const sl_lookup& l, const sl_summary& out, int64_t b, int64_t h, int64_t panel, int64_t panels,
                          std::atomic<uint8_t>* checked) {
    const int64_t first = panel * SL_QUERIES, rows = rows_of(l, first);
    const int64_t g = h / (l.heads / l.kv_heads), wide = padded(l.value_width), lanes = lanes_of(rows);
    Scratch scratch;
    ScoreMaker make(l, 1, scratch);
    float* scores = scratch.floats(SL_KEYS * ROW);
    float* average = scratch.floats(SL_QUERIES * wide);
    float* copy = scratch.floats(SL_KEYS * wide);
    Moments& all = *(Moments*)scratch.floats(sizeof(Moments) / sizeof(float));
    if (!make.take_queries(l, 0, b, h, first, rows)) return false;
    all.clear(lanes);
    std::memset(average, 0, lanes * wide * sizeof(float));
    const Counted counted{l.sinks ? l.first_sink[b] : 0, l.sinks};
    const int64_t list = (int64_t)l.blocks.pattern[b * l.heads + h] * panels + panel;
    for (int64_t entry = l.blocks.start[list]; entry < l.blocks.start[list + 1]; ++entry) {
        const int64_t key = l.blocks.block[entry] * SL_KEYS, keys = l.keys - key < SL_KEYS ? l.keys - key : SL_KEYS;
        const float* k = row_of(l.key, b, g, key);
        const float* v = row_of(l.value, b, g, key);
        std::atomic<uint8_t>& known = checked[(b * l.kv_heads + g) * ((l.keys + SL_KEYS - 1) / SL_KEYS) + l.blocks.block[entry]];
        if (!known.load(std::memory_order_relaxed)) {
            if (!all_finite(k, l.key.row, keys, l.width) || !all_finite(v, l.value.row, keys, l.value_width)) return false;
            known.store(1, std::memory_order_relaxed);
        }
        make.take_keys(l, k, keys);
        const uint8_t* hidden = bits_of(l.blocks, entry);
        const Rows right = whole_vectors(v, l.value.row, keys, l.value_width, copy);
        for_each_part(hidden, keys, lanes, [&](Part part) {
            const Block here{b, h, key + part.key, part.keys, first, rows, part.lane0, part.lane1};
            make.scores(l, 0, part, here, scores);
            const Span at{l.key_position + here.key, part.keys,   l.query_position + first, part.lane0,
                          part.lane1,                here.key, queries_of(l, first)};
            if (hidden)
                add_block<true>(scores, from_key(hidden, part.key), at, counted, l.statistics, all);
            else
                add_block<false>(scores, nullptr, at, counted, l.statistics, all);
            drop(l, here, scores);
            product(part.lane1 - part.lane0, wide, part.keys, {scores + part.lane0, 1, ROW}, right.data + part.key * right.row, right.row,
                    average + part.lane0 * wide, wide, all.fade + part.lane0);
        });
    }
    write_rows(l, out, (b * l.heads + h) * l.queries + first, rows, all, average, wide, l.key_position);
    return all_finite(all.z, SL_QUERIES, 1, lanes);
}

}  // namespace SL_ISA
