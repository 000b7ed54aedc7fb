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
constexpr int64_t AHEAD = 96;   // keys that are fetched before they are needed; the chunk's values are fetched with its keys

constexpr int64_t LARGE = 1 << 23;  // numbers of keys and values of a head beyond which no cache keeps them for the next lookup

// ONCE: past the caches that keep what is read again.
template <bool ONCE>
inline void fetch(const float* row, int64_t width) {
    for (int64_t d = 0; d < width; d += 16) __builtin_prefetch(row + d, 0, ONCE ? 0 : 3);
}

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
    const bool adjusting = adjusts(l), once = l.keys * (l.width + l.value_width) > LARGE;
    sl_fold f = part.moments;
    f.scores = scores;
    for (int64_t key = key0; key < key1; key += CHUNK) {
        const int64_t keys = key1 - key < CHUNK ? key1 - key : CHUNK;
        const float *k = row_of(l.key, b, g, key), *v = row_of(l.value, b, g, key);
        if (l.additive && !all_finite(k, l.key.row, keys, l.width)) return false;
        float bad = 0;  // becomes NaN where a product is not finite, as every product with a key is that is not
        f.columns = keys;
        f.position = l.key_position + key;
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t h = g * group + r / l.queries;
            const uint8_t* seen = l.seen ? l.seen + b * l.seen_batch + h * l.seen_head + r % l.queries * l.seen_row + key : nullptr;
            for (int64_t j = 0; j < keys; ++j) {
                const float *one = queries + r * l.width, *other = k + j * l.key.row;
                if (r == 0 && once) fetch<true>(other + AHEAD * l.key.row, l.width), fetch<true>(v + j * l.value.row, l.value_width);
                if (r == 0 && !once) fetch<false>(other + AHEAD * l.key.row, l.width), fetch<false>(v + j * l.value.row, l.value_width);
                if (seen && !seen[j]) {
                    scores[r * keys + j] = 0;
                    continue;
                }
                const float x = l.additive ? additive_score(one, other, l.additive + h * l.additive_head, l.width) : dot(other, one, l.width);
                bad += x * 0;
                scores[r * keys + j] = adjusting ? adjusted(l, b, h, r % l.queries, key + j, x) : x;
            }
            seen ? fold_row<true>(f, r, seen) : fold_row<false>(f, r, nullptr);
            drop_row(l, b, h, r % l.queries, key, keys, scores + r * keys);
        }
        if (!(bad == 0)) return false;
        const Rows right = whole_vectors(v, l.value.row, keys, l.value_width, copy);
        product(rows, wide, keys, {scores, keys, 1}, right.data, right.row, part.average, wide, f.fade);
    }
    return all_finite(f.z, rows, 1, rows) && all_finite(part.average, wide, rows, wide);  // 0 times an infinite value is NaN
}

// Row r of `part` into row r of `whole`.
inline void merge_row(const sl_part& part, int64_t r, int64_t wide, sl_part& whole) {
    float fades[2];
    put_row(whole.moments, r, merged(row_of(whole.moments, r), row_of(part.moments, r), fades));
    float *to = whole.average + r * wide, *from = part.average + r * wide;
    for (int64_t d = 0; d < wide; ++d) to[d] = to[d] * fades[0] + from[d] * fades[1];
}

}  // namespace SL_ISA
