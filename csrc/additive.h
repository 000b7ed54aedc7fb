// Additive scores, s = u . tanh(q + k) (Bahdanau, Cho & Bengio 2015), and the way back.
//
// A tanh for every pair and dimension is all the work there is. tanh(a + b) = 1 - 2 e^-2a / (e^2b + e^-2a): the exponentials are
// taken once per query and once per key, and several dimensions share one division by bringing their fractions together.
// Where a product of their denominators could leave the range of numbers, tanh is taken as it is.
#pragma once

#include <algorithm>

#include "panel.h"

namespace SL_ISA {

// As many dimensions share a division as |q| and |k| allow: denominators lie between e^-2|.| and twice e^2|.|.
constexpr int MOST_SHARE = 8, SHARE = 4;
constexpr float REACH_OF_MOST = 5, REACH = 10;

// Dimensions in whole groups, that share a division or lie side by side in a vector.
inline int64_t shared_width(int64_t width) { return (width + 15) / 16 * 16; }

inline float largest(const float* x, int64_t count) {
    F top{};
    for (int64_t n = 0; n < count; n += LANES) top = max(abs(load(x + n)), top);
    float all = 0;
    for (int l = 0; l < LANES; ++l) all = std::max(all, top[l]);
    return all;
}

// The first `lanes` lanes of `count` columns.
inline void clear_columns(float* columns, int64_t count, int64_t lanes) {
    for (int64_t d = 0; d < count; ++d) std::memset(columns + d * ROW, 0, lanes * sizeof(float));
}

// Projected queries of a panel as columns, and e^-2q and -2 u e^-2q of them where they can be of use. Dimensions are filled
// with zeros to whole groups.
struct QueryTerms {
    float *plain, *exponential, *weighted;
    float reach;

    static int64_t size(const sl_lookup& l) { return shared_width(l.width) * ROW; }

    void take(const sl_lookup& l, const float* u, int64_t b, int64_t h, int64_t first, int64_t rows) {
        const int64_t lanes = lanes_of(rows);
        clear_columns(plain, shared_width(l.width), lanes);
        pack_queries(l, b, h, first, rows, plain);
        reach = 0;
        for (int64_t d = 0; d < l.width; ++d) reach = std::max(reach, largest(plain + d * ROW, lanes));
        if (reach > REACH) return;
        for (int64_t d = 0; d < shared_width(l.width); ++d)
            for (int64_t n = d * ROW; n < d * ROW + lanes; n += LANES) {
                const F e = exp(load(plain + n) * -2.f);
                store(exponential + n, e);
                store(weighted + n, e * (-2.f * u[d]));
            }
    }
};

// The same of a block of keys as rows: e^2k.
struct KeyTerms {
    float *plain, *exponential;
    float reach;

    static int64_t size(const sl_lookup& l) { return shared_width(l.width) * SL_KEYS; }

    void take(const sl_lookup& l, const float* k, int64_t keys) {
        const int64_t wide = shared_width(l.width), used = keys * wide;
        std::memset(plain, 0, lanes_of(used) * sizeof(float));
        for (int64_t j = 0; j < keys; ++j) std::memcpy(plain + j * wide, k + j * l.key.row, l.width * sizeof(float));
        reach = largest(plain, used);
        if (reach > REACH) return;
        for (int64_t n = 0; n < used; n += LANES) store(exponential + n, exp(load(plain + n) * 2.f));
    }
};

// u of one head, filled with zeros to whole groups.
inline void take_weight(const sl_lookup& l, int64_t h, float* to) {
    std::memset(to, 0, shared_width(l.width) * sizeof(float));
    std::memcpy(to, l.additive + h * l.additive_head, l.width * sizeof(float));
}

// The sum of COUNT fractions as one.
template <int COUNT>
inline void sum_fractions(const F* above, const F* below, F& numerator, F& denominator) {
    if constexpr (COUNT == 1) {
        numerator = *above, denominator = *below;
    } else {
        F n[2], d[2];
        sum_fractions<COUNT / 2>(above, below, n[0], d[0]);
        sum_fractions<COUNT / 2>(above + COUNT / 2, below + COUNT / 2, n[1], d[1]);
        numerator = n[0] * d[1] + n[1] * d[0], denominator = d[0] * d[1];
    }
}

template <int COUNT>
inline void scores_by_fractions(const float* u, int64_t width, const QueryTerms& queries, const KeyTerms& keys, Part part, float* scores) {
    float all = 0;
    for (int64_t d = 0; d < width; ++d) all += u[d];
    for (int64_t lane = part.lane0; lane < part.lane1; lane += LANES)
        for (int64_t j = 0; j < part.keys; ++j) {
            const float *q = queries.exponential + lane, *weighted = queries.weighted + lane, *k = keys.exponential + (part.key + j) * width;
            F sum = splat(all);
            for (int64_t d = 0; d < width; d += COUNT) {
                F above[COUNT], below[COUNT], n, m;
#pragma GCC unroll 8
                for (int c = 0; c < COUNT; ++c, q += ROW, weighted += ROW) above[c] = load(weighted), below[c] = load(q) + k[d + c];
                sum_fractions<COUNT>(above, below, n, m);
                sum += n / m;
            }
            store(scores + j * ROW + lane, sum);
        }
}

inline void scores_by_tanh(const float* u, int64_t width, const QueryTerms& queries, const KeyTerms& keys, Part part, float* scores) {
    for (int64_t lane = part.lane0; lane < part.lane1; lane += LANES)
        for (int64_t j = 0; j < part.keys; ++j) {
            F sum{};
            for (int64_t d = 0; d < width; ++d) sum += u[d] * tanh(load(queries.plain + d * ROW + lane) + keys.plain[(part.key + j) * width + d]);
            store(scores + j * ROW + lane, sum);
        }
}

// Scores of a part of a block, as products have them: a row for each key, from the part's first on.
inline void score_additively(const float* u, int64_t width, const QueryTerms& queries, const KeyTerms& keys, Part part, float* scores) {
    const float reach = std::max(queries.reach, keys.reach);
    if (reach <= REACH_OF_MOST)
        scores_by_fractions<MOST_SHARE>(u, width, queries, keys, part, scores);
    else if (reach <= REACH)
        scores_by_fractions<SHARE>(u, width, queries, keys, part, scores);
    else
        scores_by_tanh(u, width, queries, keys, part, scores);
}

// tanh of SHARE dimensions: from the exponentials of columns q and of one key's numbers k if FACTORED.
template <bool FACTORED>
inline void tanh_of(const F* q, const float* k, F* t) {
    if (!FACTORED) {
        for (int n = 0; n < SHARE; ++n) t[n] = tanh(q[n] + k[n]);
        return;
    }
    F x[SHARE];
    for (int n = 0; n < SHARE; ++n) x[n] = q[n] + k[n];
    const F x01 = x[0] * x[1], x23 = x[2] * x[3], share = -2.f / (x01 * x23), y01 = share * x23, y23 = share * x01;
    t[0] = q[0] * (y01 * x[1]) + 1.f, t[1] = q[1] * (y01 * x[0]) + 1.f, t[2] = q[2] * (y23 * x[3]) + 1.f, t[3] = q[3] * (y23 * x[2]) + 1.f;
}

template <bool FACTORED>
inline void gradients_of_tanh(int64_t width, const float* columns, const float* rows, const float* ds, Part part, float* dq, float* dk, float* du) {
    for (int64_t d = 0; d < width; d += SHARE) {
        F weight[SHARE];
        for (int n = 0; n < SHARE; ++n) weight[n] = load(du + (d + n) * LANES);
        for (int64_t j = 0; j < part.keys; ++j) {
            F key[SHARE] = {};
            for (int64_t lane = part.lane0; lane < part.lane1; lane += LANES) {
                const F upstream = load(ds + j * ROW + lane);
                F q[SHARE], t[SHARE];
                for (int n = 0; n < SHARE; ++n) q[n] = load(columns + (d + n) * ROW + lane);
                tanh_of<FACTORED>(q, rows + (part.key + j) * width + d, t);
                for (int n = 0; n < SHARE; ++n) {
                    const F weighted = upstream * t[n], inner = upstream - weighted * t[n];
                    float* at = dq + (d + n) * ROW + lane;
                    store(at, load(at) + inner);
                    key[n] += inner;
                    weight[n] += weighted;
                }
            }
            for (int n = 0; n < SHARE; ++n) dk[(part.key + j) * width + d + n] += total(key[n]);
        }
        for (int n = 0; n < SHARE; ++n) store(du + (d + n) * LANES, weight[n]);
    }
}

// Adds sum_j ds (1 - t^2) to `dq` (columns), sum_i ds (1 - t^2) to `dk` (rows), both still to be multiplied by u, and
// sum_ij ds t to `du` (LANES numbers for each dimension).
inline void pull_additively(int64_t width, const QueryTerms& queries, const KeyTerms& keys, const float* ds, Part part, float* dq, float* dk,
                            float* du) {
    if (std::max(queries.reach, keys.reach) <= REACH)
        gradients_of_tanh<true>(width, queries.exponential, keys.exponential, ds, part, dq, dk, du);
    else
        gradients_of_tanh<false>(width, queries.plain, keys.plain, ds, part, dq, dk, du);
}

// One query and one key, for few queries: lanes are dimensions. tanhs: where those of whole vectors go, or null.
inline float additive_score(const float* q, const float* k, const float* u, int64_t width, float* tanhs = nullptr) {
    F sum{};
    int64_t d = 0;
    const auto add = [&](F a, F b, F w) {
        const F t = tanh(a + b);
        if (tanhs) store(tanhs + d, t);
        sum += w * t;
    };
    for (; d + LANES <= width; d += LANES) add(load(q + d), load(k + d), load(u + d));
    if (d < width) {
        float rest[3][LANES] = {};
        std::memcpy(rest[0], q + d, (width - d) * sizeof(float)), std::memcpy(rest[1], k + d, (width - d) * sizeof(float));
        std::memcpy(rest[2], u + d, (width - d) * sizeof(float));
        add(load(rest[0]), load(rest[1]), load(rest[2]));
    }
    return total(sum);
}

}  // namespace SL_ISA
