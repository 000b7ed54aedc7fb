// The backward pass of one part of the keys of one key-value head: scores are computed again block by block, and a few numbers
// per query turn them into the gradient of all statistics together. Keys run outside and panels of queries inside, so that the
// gradients of a block of keys and values stay in cache; those of the queries are summed over blocks in memory.
#pragma once

#include "moments.h"
#include "panel.h"

namespace SL_ISA {

// Coefficients of one panel, a lane per query; see sl_upstream.
struct Coefficients {
    alignas(64) float m[SL_QUERIES], c0[SL_QUERIES], c1[SL_QUERIES], c2[SL_QUERIES], c3[SL_QUERIES], c4[SL_QUERIES], c5[SL_QUERIES];
    alignas(64) float sink[SL_QUERIES], distance[SL_QUERIES];

    void read(const sl_upstream& up, int64_t base, int64_t rows) {
        std::memset(this, 0, sizeof *this);
        copy(m, up.max_logit, base, rows), copy(c0, up.c0, base, rows), copy(c1, up.c1, base, rows), copy(c2, up.c2, base, rows);
        copy(c3, up.c3, base, rows), copy(c4, up.c4, base, rows), copy(c5, up.c5, base, rows);
        copy(sink, up.sink, base, rows), copy(distance, up.distance, base, rows);
        for (int64_t r = 0; r < rows; ++r)
            if (m[r] == -INF) m[r] = 0;  // a query that sees nothing
    }

    bool finite() const { return all_finite(m, SL_QUERIES, sizeof *this / sizeof(float) / SL_QUERIES, SL_QUERIES); }

  private:
    static void copy(float* to, const float* from, int64_t base, int64_t rows) {
        if (from) std::memcpy(to, from + base, rows * sizeof(float));
    }
};

// Scores become e^t and dP becomes dS, both 0 where hidden.
template <bool MASKED, bool STATISTICS>
void differentiate(float* scores, float* dp, const uint8_t* bits, Span at, Counted counted, const Coefficients& all) {
    for (int64_t lane = 0; lane < at.lanes; lane += LANES) {
        const F m = load(all.m + lane), c0 = load(all.c0 + lane);
        F c1, c2, c3, c4, c5, sink, distance, i;
        if (STATISTICS) {
            c1 = load(all.c1 + lane), c2 = load(all.c2 + lane), c3 = load(all.c3 + lane), c4 = load(all.c4 + lane);
            c5 = load(all.c5 + lane), sink = load(all.sink + lane), distance = load(all.distance + lane);
            for (int l = 0; l < LANES; ++l) i[l] = (float)(at.query - at.key + lane + l);
        }
        for (int64_t j = 0; j < at.keys; ++j) {
            float *s = scores + j * SL_QUERIES + lane, *d = dp + j * SL_QUERIES + lane;
            F t = load(s) - m;
            I seen;
            if (MASKED) {
                seen = visible(bits, j, lane);
                t = seen ? t : splat(-INF);
            }
            F e = exp_negative(t), inner = load(d) + c0, ds;
            if (STATISTICS) {
                if (MASKED) t = seen ? t : F{};
                inner += t * (c1 + c2 * t) + c3 * e + distance * abs(i - (float)j);
                if (at.key + j >= counted.first_sink && at.key + j < counted.first_sink + counted.sinks) inner += sink;
                F flat = c4 + c5 * t;
                ds = e * inner + (MASKED ? (seen ? flat : F{}) : flat);
            } else {
                ds = e * inner;
            }
            store(s, e);
            store(d, ds);
        }
    }
}

// One query head's inputs, packed once for all blocks of keys.
struct PackedHead {
    const float *columns, *upstream_columns;  // (panels, width, SL_QUERIES) and (panels, value width, SL_QUERIES)
    const float* upstream;                    // (L, whole vectors) gradient of the average over Z
    Rows rows;                                // queries as they are
};

inline bool pack_head(const sl_lookup& l, const sl_upstream& up, int64_t b, int64_t h, int64_t panels, Scratch& scratch, PackedHead& to) {
    const int64_t wide = padded(l.value_width), base = (b * l.heads + h) * l.queries;
    float* columns = scratch.floats(panels * l.width * SL_QUERIES);
    float* upstream_columns = scratch.floats(panels * l.value_width * SL_QUERIES);
    float* upstream = scratch.floats(l.queries * wide);
    float* copy = scratch.floats(l.width == padded(l.width) ? 1 : l.queries * padded(l.width));
    std::memset(upstream_columns, 0, panels * l.value_width * SL_QUERIES * sizeof(float));
    std::memset(upstream, 0, l.queries * wide * sizeof(float));
    for (int64_t panel = 0; panel < panels; ++panel) {
        const int64_t first = panel * SL_QUERIES, rows = rows_of(l, first);
        pack_queries(l, b, h, first, rows, columns + panel * l.width * SL_QUERIES);
        for (int64_t r = 0; up.average.data && r < rows; ++r) {
            const float *g = row_of(up.average, b, h, first + r), inverse = up.inverse_z[base + first + r];
            float *row = upstream + (first + r) * wide, *column = upstream_columns + panel * l.value_width * SL_QUERIES + r;
            for (int64_t d = 0; d < l.value_width; ++d) column[d * SL_QUERIES] = row[d] = g[d] * inverse;
        }
    }
    to = {columns, upstream_columns, upstream, whole_vectors(row_of(l.query, b, h, 0), l.query.row, l.queries, l.width, copy)};
    return all_finite(columns, SL_QUERIES, panels * l.width, SL_QUERIES) && all_finite(upstream, wide, l.queries, wide);
}

inline void add_rows(const float* from, int64_t from_row, float scale, float* to, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t d = 0; d < width; ++d) to[r * width + d] += scale * from[r * from_row + d];
}

// Blocks of keys block0 … block1 of key-value head g. False where something that is not finite was met.
inline bool backward_part(const sl_lookup& l, const sl_upstream& up, const sl_gradients& out, int64_t b, int64_t g, int64_t part,
                          int64_t block0, int64_t block1) {
    const int64_t group = l.heads / l.kv_heads, panels = (l.queries + SL_QUERIES - 1) / SL_QUERIES;
    const int64_t wide = padded(l.width), value_wide = padded(l.value_width);
    const bool statistics = up.c1 || up.c2 || up.c3 || up.c4 || up.c5 || up.sink || up.distance;
    Scratch scratch;
    float* scores = scratch.floats(SL_KEYS * SL_QUERIES);
    float* dp = scratch.floats(SL_KEYS * SL_QUERIES);
    float* slopes = scratch.floats(l.softcap != 0 ? SL_KEYS * SL_QUERIES : 1);
    float* dk = scratch.floats(SL_KEYS * wide);
    float* dv = scratch.floats(SL_KEYS * value_wide);
    float* key_copy = scratch.floats(SL_KEYS * wide);
    float* dq = scratch.floats(panels * SL_QUERIES * wide);
    float* kept = scratch.floats(SL_QUERIES);
    Coefficients* coefficients = (Coefficients*)scratch.floats(panels * sizeof(Coefficients) / sizeof(float));
    int64_t* cursor = (int64_t*)scratch.floats(2 * panels);
    for (int64_t r = 0; r < SL_QUERIES; ++r) kept[r] = 1;
    for (int64_t h = g * group; h < (g + 1) * group; ++h) {
        Scratch of_head = scratch;
        PackedHead head;
        if (!pack_head(l, up, b, h, panels, of_head, head)) return false;
        const int64_t base = (b * l.heads + h) * l.queries, lists = (int64_t)l.blocks.pattern[b * l.heads + h] * panels;
        for (int64_t panel = 0; panel < panels; ++panel) {
            const int64_t first = panel * SL_QUERIES, rows = rows_of(l, first);
            coefficients[panel].read(up, base + first, rows);
            if (!coefficients[panel].finite()) return false;
            cursor[panel] = l.blocks.start[lists + panel];
        }
        std::memset(dq, 0, panels * SL_QUERIES * wide * sizeof(float));
        for (int64_t block = block0; block < block1; ++block) {
            const int64_t key = block * SL_KEYS, keys = l.keys - key < SL_KEYS ? l.keys - key : SL_KEYS;
            const float *k = row_of(l.key, b, g, key), *v = row_of(l.value, b, g, key);
            const Rows key_rows = whole_vectors(k, l.key.row, keys, l.width, key_copy);
            bool fresh = true;
            for (int64_t panel = 0; panel < panels; ++panel) {
                int64_t& entry = cursor[panel];
                const int64_t end = l.blocks.start[lists + panel + 1];
                while (entry < end && l.blocks.block[entry] < block) ++entry;
                if (entry == end || l.blocks.block[entry] != block) continue;
                if (fresh) {
                    if (!all_finite(k, l.key.row, keys, l.width) || !all_finite(v, l.value.row, keys, l.value_width)) return false;
                    std::memset(dk, 0, SL_KEYS * wide * sizeof(float));
                    std::memset(dv, 0, SL_KEYS * value_wide * sizeof(float));
                    fresh = false;
                }
                const int64_t first = panel * SL_QUERIES, rows = rows_of(l, first);
                const int64_t lanes = lanes_of(rows);
                product(keys, lanes, l.width, {k, l.key.row, 1}, head.columns + panel * l.width * SL_QUERIES,
                                                 SL_QUERIES, scores, SL_QUERIES, nullptr);
                const Block here{b, h, key, keys, first, rows, lanes};
                if (adjusts(l)) adjust(l, here, scores, slopes);
                product(keys, lanes, l.value_width, {v, l.value.row, 1},
                                                 head.upstream_columns + panel * l.value_width * SL_QUERIES, SL_QUERIES, dp, SL_QUERIES, nullptr);
                const Span at{l.key_position + key, keys, l.query_position + first, lanes, key};
                const Counted counted{l.first_sink[b], l.sinks};
                const uint8_t* hidden = bits_of(l.blocks, entry);
                const Coefficients& c = coefficients[panel];
                if (statistics)
                    hidden ? differentiate<true, true>(scores, dp, hidden, at, counted, c) : differentiate<false, true>(scores, dp, hidden, at, counted, c);
                else
                    hidden ? differentiate<true, false>(scores, dp, hidden, at, counted, c) : differentiate<false, false>(scores, dp, hidden, at, counted, c);
                unadjust(l, here, dp, slopes, out.relative ? out.relative + ((part * l.batch + b) * l.heads + h) * (l.queries + l.keys - 1) : nullptr);
                product(keys, value_wide, rows, {scores, SL_QUERIES, 1}, head.upstream + first * value_wide, value_wide, dv,
                                                 value_wide, kept);
                product(keys, wide, rows, {dp, SL_QUERIES, 1}, head.rows.data + first * head.rows.row, head.rows.row, dk, wide, kept);
                product(lanes, wide, keys, {dp, 1, SL_QUERIES}, key_rows.data, key_rows.row, dq + first * wide, wide, kept);
                if (out.key_bias)
                    for (int64_t j = 0; j < keys; ++j) {
                        float sum = 0;
                        for (int64_t r = 0; r < rows; ++r) sum += dp[j * SL_QUERIES + r];
                        out.key_bias[(b * l.heads + h) * l.keys + key + j] += sum;
                    }
            }
            if (fresh) continue;
            add_rows(dk, wide, l.scale, out.key + ((b * l.kv_heads + g) * l.keys + key) * l.width, keys, l.width);
            add_rows(dv, value_wide, 1, out.value + ((b * l.kv_heads + g) * l.keys + key) * l.value_width, keys, l.value_width);
        }
        float* to = out.query + ((part * l.batch * l.heads * l.queries) + base) * l.width;
        for (int64_t r = 0; r < l.queries; ++r)
            for (int64_t d = 0; d < l.width; ++d) to[r * l.width + d] = l.scale * dq[r * wide + d];
    }
    return true;
}

}  // namespace SL_ISA
