// Few queries and a long cache: reading keys and values once is all that matters, and a panel of SL_QUERIES lanes would be
// mostly empty. Here lanes are the width of a key, a block's scores are rows, and the keys are cut into parts of their own
// moments, so that all threads read; then the parts of each query are merged.
#pragma once

#include "additive.h"
#include "drop.h"
#include "fold.h"
#include "panel.h"

namespace SL_ISA {

constexpr int64_t CHUNK = 256;  // keys whose scores lie in cache from the product that makes them to the one that uses them up

inline float dot(const float* a, const float* b, int64_t width) {
    F sum[2] = {};
    int64_t d = 0;
    for (; d + 2 * LANES <= width; d += 2 * LANES) {
        sum[0] += load(a + d) * load(b + d);
        sum[1] += load(a + d + LANES) * load(b + d + LANES);
    }
    for (; d + LANES <= width; d += LANES) sum[0] += load(a + d) * load(b + d);
    float rest = total(sum[0] + sum[1]);
    for (; d < width; ++d) rest += a[d] * b[d];
    return rest;
}

// The rows of one key-value head (its query heads, each with all queries) over keys key0 … key1. False where something that is
// not finite was met.
inline bool decode_part(const sl_lookup& l, const sl_part& part, int64_t b, int64_t g, int64_t key0, int64_t key1) {
    const int64_t group = l.heads / l.kv_heads, rows = group * l.queries, wide = padded(l.value_width);
    Scratch scratch;
    float* queries = scratch.floats(rows * l.width);
    float* scores = scratch.floats(rows * CHUNK);
    float* copy = scratch.floats(CHUNK * wide);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t d = 0; d < l.width; ++d) queries[r * l.width + d] = row_of(l.query, b, g * group + r / l.queries, r % l.queries)[d] * l.scale;
    if (!all_finite(queries, l.width, rows, l.width)) return false;
    const bool adjusting = adjusts(l);
    sl_fold f = part.moments;
    f.scores = scores;
    for (int64_t key = key0; key < key1; key += CHUNK) {
        const int64_t keys = key1 - key < CHUNK ? key1 - key : CHUNK;
        const float *k = row_of(l.key, b, g, key), *v = row_of(l.value, b, g, key);
        if (!all_finite(k, l.key.row, keys, l.width) || !all_finite(v, l.value.row, keys, l.value_width)) return false;
        f.columns = keys;
        f.position = l.key_position + key;
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t h = g * group + r / l.queries;
            for (int64_t j = 0; j < keys; ++j) {
                const float *one = queries + r * l.width, *other = k + j * l.key.row;
                const float x = l.additive ? additive_score(one, other, l.additive + h * l.additive_head, l.width) : dot(other, one, l.width);
                scores[r * keys + j] = adjusting ? adjusted(l, b, h, r % l.queries, key + j, x) : x;
            }
            if (l.seen)
                fold_row<true>(f, r, l.seen + b * l.seen_batch + h * l.seen_head + r % l.queries * l.seen_row + key);
            else
                fold_row<false>(f, r, nullptr);
            drop_row(l, b, h, r % l.queries, key, keys, scores + r * keys);
        }
        const Rows right = whole_vectors(v, l.value.row, keys, l.value_width, copy);
        product(rows, wide, keys, {scores, keys, 1}, right.data, right.row, part.average, wide, f.fade);
    }
    return all_finite(f.z, rows, 1, rows);
}

// Row r of `part` into row r of `whole`: means and variances merge as Chan, Golub & LeVeque (1983) merge.
inline void merge_row(const sl_part& part, int64_t r, int64_t wide, sl_part& whole) {
    const sl_fold &x = part.moments, &y = whole.moments;
    if (!(x.count[r] > 0)) return;
    const float m = std::max(x.m[r], y.m[r]), fx = std::exp(x.m[r] - m), fy = y.count[r] > 0 ? std::exp(y.m[r] - m) : 0;
    const float zx = x.z[r] * fx, zy = y.z[r] * fy, z = zx + zy, share = zx / z;
    const float mean_x = x.mean[r] + (x.m[r] - m), mean_y = y.count[r] > 0 ? y.mean[r] + (y.m[r] - m) : mean_x, apart = mean_x - mean_y;
    const float n = x.count[r] + y.count[r], n_share = x.count[r] / n, flat_apart = y.count[r] > 0 ? x.flat_mean[r] - y.flat_mean[r] : 0;
    if (x.m[r] > y.m[r]) y.best[r] = x.best[r];
    y.var[r] = x.var[r] * fx + y.var[r] * fy + zy * share * apart * apart;
    y.mean[r] = share < 0.5f ? mean_y + share * apart : mean_x - (1 - share) * apart;
    y.flat_var[r] += x.flat_var[r] + y.count[r] * n_share * flat_apart * flat_apart;
    y.flat_mean[r] = n_share < 0.5f ? y.flat_mean[r] + n_share * flat_apart : x.flat_mean[r] - (1 - n_share) * flat_apart;
    y.c[r] = x.c[r] * fx * fx + y.c[r] * fy * fy;
    y.distance[r] = x.distance[r] * fx + y.distance[r] * fy;
    y.sink[r] = x.sink[r] * fx + y.sink[r] * fy;
    y.m[r] = m, y.z[r] = z, y.count[r] = n;
    for (int64_t d = 0; d < wide; ++d) whole.average[r * wide + d] = part.average[r * wide + d] * fx + whole.average[r * wide + d] * fy;
}

}  // namespace SL_ISA
