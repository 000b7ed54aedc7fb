// The forward pass of one panel of queries: scores, weights and weighted sum of one block of keys after another, each block
// in cache from the product that makes its scores to the one that uses them up (online softmax, Milakov & Gimelshein 2018).
#pragma once

#include <atomic>
#include <cmath>

#include "moments.h"
#include "panel.h"

namespace SL_ISA {

// What of a panel goes where.
struct Panel {
    int64_t b, h, first, rows;
};

inline void write(const sl_lookup& l, const sl_summary& out, Panel at, const Moments& all, const float* average, int64_t wide) {
    int64_t base = (at.b * l.heads + at.h) * l.queries + at.first;
    for (int64_t r = 0; r < at.rows; ++r) {
        float z = all.z[r], inverse = z > 0 ? 1 / z : 0, *to = out.average + (base + r) * l.value_width;
        for (int64_t d = 0; d < l.value_width; ++d) to[d] = average[r * wide + d] * inverse;
        float log_z = z > 0 ? std::log(z) : 0;
        out.max_logit[base + r] = all.m[r];
        out.log_z[base + r] = log_z;
        out.visible[base + r] = (int64_t)all.count[r];
        if (!l.statistics) continue;
        out.excess[base + r] = all.mean[r];
        out.entropy[base + r] = log_z - all.mean[r];
        out.expected_logit_var[base + r] = all.var[r] * inverse;
        out.collision[base + r] = all.c[r] * inverse * inverse;
        out.logit_mean[base + r] = all.flat_mean[r];
        out.logit_var[base + r] = all.count[r] > 0 ? all.flat_var[r] / all.count[r] : 0;
        out.sink_mass[base + r] = all.sink[r] * inverse;
        out.distance[base + r] = all.distance[r] * inverse;
        out.argmax[base + r] = all.best[r];
    }
}

// False where something that is not finite was met. checked: (B, Hkv, blocks) which blocks of keys and values are known to be
// finite, shared by all panels.
inline bool forward_panel(const sl_lookup& l, const sl_summary& out, int64_t b, int64_t h, int64_t panel, int64_t panels,
                          std::atomic<uint8_t>* checked) {
    const int64_t first = panel * SL_QUERIES, rows = l.queries - first < SL_QUERIES ? l.queries - first : SL_QUERIES;
    const int64_t g = h / (l.heads / l.kv_heads), wide = padded(l.value_width);
    Scratch scratch;
    float* packed = scratch.floats(l.width * SL_QUERIES);
    float* scores = scratch.floats(SL_KEYS * SL_QUERIES);
    float* average = scratch.floats(SL_QUERIES * wide);
    float* copy = scratch.floats(SL_KEYS * wide);
    Moments& all = *(Moments*)scratch.floats(sizeof(Moments) / sizeof(float));
    pack_queries(l, b, h, first, rows, packed);
    if (!all_finite(packed, SL_QUERIES, l.width, SL_QUERIES)) return false;
    all.clear();
    std::memset(average, 0, SL_QUERIES * wide * sizeof(float));
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
        product(keys, SL_QUERIES, l.width, {k, l.key.row, 1}, packed, SL_QUERIES, scores, SL_QUERIES, nullptr);
        add_key_bias(l, b, h, key, keys, scores);
        const Span at{l.key_position + key, keys, l.query_position + first};
        const Counted counted{l.first_sink[b], l.sinks};
        const uint8_t* hidden = bits_of(l.blocks, entry);
        if (hidden)
            add_block<true>(scores, hidden, at, counted, l.statistics, all);
        else
            add_block<false>(scores, nullptr, at, counted, l.statistics, all);
        const Rows right = whole_vectors(v, l.value.row, keys, l.value_width, copy);
        product(SL_QUERIES, wide, keys, {scores, 1, SL_QUERIES}, right.data, right.row, average, wide, all.fade);
    }
    write(l, out, {b, h, first, rows}, all, average, wide);
    return all_finite(all.z, SL_QUERIES, 1, SL_QUERIES);
}

}  // namespace SL_ISA
