// The backward pass of one part of the keys of one key-value head: scores are computed again block by block, and a few numbers
// per query turn them into the gradient of all statistics together. Keys run outside and panels of queries inside, so that the
// gradients of a block of keys and values stay in cache; those of the queries are summed over blocks in memory.
#pragma once

#include "drop.h"
#include "entmax.h"
#include "moments.h"
#include "scores.h"

namespace SL_ISA {

// Coefficients of one panel, a lane per query; see sl_upstream.
struct Coefficients {
    alignas(64) float m[SL_QUERIES], c0[SL_QUERIES], c1[SL_QUERIES], c2[SL_QUERIES], c3[SL_QUERIES], c4[SL_QUERIES], c5[SL_QUERIES];
    alignas(64) float sink[SL_QUERIES], distance[SL_QUERIES];

    // False where one is not finite.
    bool read(const sl_upstream& up, int64_t base, int64_t rows) {
        copy(m, up.max_logit, base, rows), copy(c0, up.c0, base, rows), copy(c1, up.c1, base, rows), copy(c2, up.c2, base, rows);
        copy(c3, up.c3, base, rows), copy(c4, up.c4, base, rows), copy(c5, up.c5, base, rows);
        copy(sink, up.sink, base, rows), copy(distance, up.distance, base, rows);
        for (int64_t r = 0; r < lanes_of(rows); ++r) {
            if (r >= rows) m[r] = 1e30f;  // lanes beyond the last query have no weight
            if (m[r] == -INF) m[r] = 0;   // a query that sees nothing
        }
        return all_finite(m, SL_QUERIES, sizeof *this / sizeof(float) / SL_QUERIES, lanes_of(rows));
    }

  private:
    static void copy(float* to, const float* from, int64_t base, int64_t rows) {
        if (from) std::memcpy(to, from + base, rows * sizeof(float));
        const int64_t given = from ? rows : 0;
        std::memset(to + given, 0, (lanes_of(rows) - given) * sizeof(float));
    }
};

// Scores become e^t and dP becomes dS, both 0 where hidden.
template <bool MASKED, bool STATISTICS>
void differentiate(float* scores, float* dp, const uint8_t* bits, Span at, Counted counted, const Coefficients& all) {
    for (int64_t lane = at.lane0; lane < at.lane1; lane += LANES) {
        const F m = load(all.m + lane), c0 = load(all.c0 + lane);
        F c1, c2, c3, c4, c5, sink, distance, i;
        if (STATISTICS) {
            c1 = load(all.c1 + lane), c2 = load(all.c2 + lane), c3 = load(all.c3 + lane), c4 = load(all.c4 + lane);
            c5 = load(all.c5 + lane), sink = load(all.sink + lane), distance = load(all.distance + lane);
            i = at.queries_from(lane);
        }
        for (int64_t j = 0; j < at.keys; ++j) {
            float *s = scores + j * ROW + lane, *d = dp + j * ROW + lane;
            F t = load(s) - m;
            I seen;
            if (MASKED) {
                seen = visible(bits, j, lane);
                t = seen ? t : splat(-INF);
            }
            F e = exp(t), inner = load(d) + c0, ds;
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

// One query head's rows for the products with gradients, made once for all blocks of keys.
struct PackedHead {
    Rows rows;                // queries as they are, of products
    float* upstream;          // (L, whole vectors) gradient of the average over Z
    float* upstream_columns;  // (panels, value width, ROW) the same

    PackedHead(const sl_lookup& l, int64_t panels, Scratch& scratch)
        : upstream(scratch.floats(l.queries * padded(l.value_width))),
          upstream_columns(scratch.floats(panels * l.value_width * ROW)),
          copy(scratch.floats(l.additive || l.width == padded(l.width) ? 1 : l.queries * padded(l.width))) {}

    // False where something is not finite.
    bool take(const sl_lookup& l, const sl_upstream& up, int64_t b, int64_t h, int64_t panels) {
        const int64_t wide = padded(l.value_width), base = (b * l.heads + h) * l.queries;
        if (!up.average.data) std::memset(upstream_columns, 0, panels * l.value_width * ROW * sizeof(float));
        if (!up.average.data || wide > l.value_width) std::memset(upstream, 0, l.queries * wide * sizeof(float));
        for (int64_t panel = 0; up.average.data && panel < panels; ++panel) {
            const int64_t first = panel * SL_QUERIES, count = rows_of(l, first);
            const float* g = row_of(up.average, b, h, first);
            pack_columns(g, up.average.row, count, l.value_width, 1, up.inverse_z + base + first, upstream_columns + panel * l.value_width * ROW);
            for (int64_t r = 0; r < count; ++r)
                for (int64_t d = 0; d < l.value_width; ++d) upstream[(first + r) * wide + d] = g[r * up.average.row + d] * up.inverse_z[base + first + r];
        }
        if (!l.additive) rows = whole_vectors(row_of(l.query, b, h, 0), l.query.row, l.queries, l.width, copy);
        return all_finite(upstream, wide, l.queries, wide);
    }

  private:
    float* copy;
};

inline void add_rows(const float* from, int64_t from_row, float scale, float* to, int64_t rows, int64_t width) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t d = 0; d < width; ++d) to[r * width + d] += scale * from[r * from_row + d];
}

// Where the gradients of what is added to the scores of a block lie.
inline AddedTo added_to(const sl_lookup& l, const sl_gradients& out, int64_t part_number, const Block& at) {
    const int64_t head = (part_number * l.batch + at.b) * l.heads + at.h;
    AddedTo to{nullptr, nullptr, nullptr, out.dense_row, out.dense_column};
    if (out.relative) to.relative = out.relative + head * (l.queries + l.keys - 1);
    if (out.temperature) to.temperature = out.temperature + head * l.queries + at.first;
    if (out.dense) to.dense = out.dense + at.b * out.dense_batch + at.h * out.dense_head + at.first * out.dense_row + at.key * out.dense_column;
    return to;
}

// Blocks of keys block0 … block1 of key-value head g. False where something that is not finite was met.
inline bool backward_part(const sl_lookup& l, const sl_upstream& up, const sl_gradients& out, int64_t b, int64_t g, int64_t part_number,
                          int64_t block0, int64_t block1) {
    const int64_t group = l.heads / l.kv_heads, panels = (l.queries + SL_QUERIES - 1) / SL_QUERIES;
    const int64_t wide = l.additive ? shared_width(l.width) : padded(l.width), value_wide = padded(l.value_width);
    const int64_t of_panel = (l.additive ? ROW : SL_QUERIES) * wide;
    const bool statistics = l.rule == SL_SOFTMAX && (up.c1 || up.c2 || up.c3 || up.c4 || up.c5 || up.sink || up.distance);
    Scratch scratch;
    float* scores = scratch.floats(SL_KEYS * ROW);
    float* dp = scratch.floats(SL_KEYS * ROW);
    float* slopes = scratch.floats(l.map != SL_IDENTITY ? SL_KEYS * ROW : 1);
    float* finals = scratch.floats(out.temperature ? SL_KEYS * ROW : 1);
    float* dk = scratch.floats(SL_KEYS * wide);
    float* dv = scratch.floats(SL_KEYS * value_wide);
    float* dq = scratch.floats(panels * of_panel);  // rows of products, columns of additive scores
    float* du = scratch.floats(wide * LANES);
    float* key_copy = scratch.floats(SL_KEYS * wide);
    float* kept = scratch.floats(SL_QUERIES);
    Coefficients* coefficients = (Coefficients*)scratch.floats(panels * sizeof(Coefficients) / sizeof(float));
    int64_t* cursor = (int64_t*)scratch.floats(2 * panels);
    ScoreMaker make(l, panels, scratch);
    PackedHead head(l, panels, scratch);
    for (int64_t r = 0; r < SL_QUERIES; ++r) kept[r] = 1;
    const Counted counted{l.sinks ? l.first_sink[b] : 0, l.sinks};
    const int64_t first_key = (b * l.kv_heads + g) * l.keys + block0 * SL_KEYS, part_keys = std::min(l.keys, block1 * SL_KEYS) - block0 * SL_KEYS;
    std::memset(out.key + first_key * l.width, 0, part_keys * l.width * sizeof(float));
    std::memset(out.value + first_key * l.value_width, 0, part_keys * l.value_width * sizeof(float));
    for (int64_t h = g * group; h < (g + 1) * group; ++h) {
        if (!head.take(l, up, b, h, panels)) return false;
        const int64_t base = (b * l.heads + h) * l.queries, lists = (int64_t)l.blocks.pattern[b * l.heads + h] * panels;
        for (int64_t panel = 0; panel < panels; ++panel) {
            const int64_t first = panel * SL_QUERIES;
            if (!coefficients[panel].read(up, base + first, rows_of(l, first))) return false;
            if (!make.take_queries(l, panel, b, h, first, rows_of(l, first))) return false;
            cursor[panel] = l.blocks.start[lists + panel];
        }
        if (!l.additive) std::memset(dq, 0, lanes_of(l.queries) * wide * sizeof(float));
        for (int64_t panel = 0; l.additive && panel < panels; ++panel)
            clear_columns(dq + panel * of_panel, wide, lanes_of(rows_of(l, panel * SL_QUERIES)));
        std::memset(du, 0, wide * LANES * sizeof(float));
        for (int64_t block = block0; block < block1; ++block) {
            const int64_t key = block * SL_KEYS, keys = l.keys - key < SL_KEYS ? l.keys - key : SL_KEYS;
            const float *k = row_of(l.key, b, g, key), *v = row_of(l.value, b, g, key);
            Rows key_rows{};
            bool fresh = true;
            for (int64_t panel = 0; panel < panels; ++panel) {
                int64_t& entry = cursor[panel];
                const int64_t end = l.blocks.start[lists + panel + 1];
                while (entry < end && l.blocks.block[entry] < block) ++entry;
                if (entry == end || l.blocks.block[entry] != block) continue;
                if (fresh) {
                    if (!all_finite(k, l.key.row, keys, l.width) || !all_finite(v, l.value.row, keys, l.value_width)) return false;
                    std::memset(dk, 0, keys * wide * sizeof(float));
                    std::memset(dv, 0, keys * value_wide * sizeof(float));
                    make.take_keys(l, k, keys);
                    if (!l.additive) key_rows = whole_vectors(k, l.key.row, keys, l.width, key_copy);
                    fresh = false;
                }
                const int64_t first = panel * SL_QUERIES, rows = rows_of(l, first);
                const uint8_t* hidden = bits_of(l.blocks, entry);
                for_each_part(hidden, keys, lanes_of(rows), [&](Part part) {
                    const int64_t at0 = part.lane0, lanes = part.lane1 - at0, queries = std::min(part.lane1, rows) - at0;
                    const Block here{b, h, key + part.key, part.keys, first, rows, at0, part.lane1};
                    make.scores(l, panel, part, here, scores, l.map != SL_IDENTITY ? slopes : nullptr);
                    if (out.temperature) std::memcpy(finals, scores, part.keys * ROW * sizeof(float));
                    const Span at{l.key_position + here.key, part.keys, l.query_position + first, at0, part.lane1, here.key, queries_of(l, first)};
                    const Coefficients& c = coefficients[panel];
                    const uint8_t* bits = from_key(hidden, part.key);
                    if (l.rule != SL_SOFTMAX) {
                        const auto roots = l.rule == SL_SPARSEMAX ? (bits ? root_weights<1, true> : root_weights<1, false>)
                                                                  : (bits ? root_weights<2, true> : root_weights<2, false>);
                        if (!roots(scores, bits, at, c.m, c.c1)) return;
                    }
                    product(part.keys, lanes, l.value_width, {v + part.key * l.value.row, l.value.row, 1},
                            head.upstream_columns + panel * l.value_width * ROW + at0, ROW, dp + at0, ROW, nullptr);
                    drop(l, here, dp);
                    if (l.rule != SL_SOFTMAX)
                        l.rule == SL_SPARSEMAX ? differentiate_entmax<1>(scores, dp, at, c.c0) : differentiate_entmax<2>(scores, dp, at, c.c0);
                    else if (statistics)
                        bits ? differentiate<true, true>(scores, dp, bits, at, counted, c) : differentiate<false, true>(scores, dp, bits, at, counted, c);
                    else
                        bits ? differentiate<true, false>(scores, dp, bits, at, counted, c) : differentiate<false, false>(scores, dp, bits, at, counted, c);
                    drop(l, here, scores);
                    product(part.keys, value_wide, queries, {scores + at0, ROW, 1}, head.upstream + (first + at0) * value_wide, value_wide,
                            dv + part.key * value_wide, value_wide, kept);
                    unadjust(l, here, dp, slopes, finals, added_to(l, out, part_number, here));
                    for (int64_t j = 0; out.key_bias && j < part.keys; ++j)
                        for (int64_t r = at0; r < at0 + queries; ++r) out.key_bias[(b * l.heads + h) * l.keys + here.key + j] += dp[j * ROW + r];
                    if (l.additive) return make.pull(l, panel, part, dp, dq + panel * of_panel, dk, du);
                    product(part.keys, wide, queries, {dp + at0, ROW, 1}, head.rows.data + (first + at0) * head.rows.row, head.rows.row,
                            dk + part.key * wide, wide, kept);
                    product(lanes, wide, part.keys, {dp + at0, 1, ROW}, key_rows.data + part.key * key_rows.row, key_rows.row,
                            dq + panel * of_panel + at0 * wide, wide, kept);
                });
            }
            if (fresh) continue;
            for (int64_t j = 0; l.additive && j < keys; ++j)
                for (int64_t d = 0; d < wide; ++d) dk[j * wide + d] *= make.weight[d];
            add_rows(dk, wide, l.scale, out.key + ((b * l.kv_heads + g) * l.keys + key) * l.width, keys, l.width);
            add_rows(dv, value_wide, 1, out.value + ((b * l.kv_heads + g) * l.keys + key) * l.value_width, keys, l.value_width);
        }
        float* to = out.query + ((part_number * l.batch * l.heads * l.queries) + base) * l.width;
        for (int64_t r = 0; r < l.queries; ++r) {
            const float* row = dq + (l.additive ? r / SL_QUERIES * of_panel + r % SL_QUERIES : r * wide);
            for (int64_t d = 0; d < l.width; ++d) to[r * l.width + d] = l.additive ? make.weight[d] * row[d * ROW] : l.scale * row[d];
        }
        for (int64_t d = 0; out.additive && d < l.width; ++d)
            out.additive[((part_number * l.batch + b) * l.heads + h) * l.width + d] = total(load(du + d * LANES));
    }
    return true;
}

}  // namespace SL_ISA
