// From what queries and keys give to final scores, for a block of transposed scores: what maps them and is added, and the way back.
#pragma once

#include "softlookup.h"
#include "vector.h"

namespace SL_ISA {

// Keys key … key + keys of head h of batch entry b, and lanes lane0 … lane1 of a panel that holds queries first … first + rows.
struct Block {
    int64_t b, h, key, keys, first, rows, lane0, lane1;
};

inline bool adjusts(const sl_lookup& l) {
    return l.key_bias || l.map != SL_IDENTITY || l.relative || l.dense || l.inverse_temperature != 1 || l.inverse_temperatures;
}

// phi(x); slope becomes phi'(x).
inline F mapped(const sl_lookup& l, F x, F& slope) {
    if (l.map == SL_SOFTCAP) {
        const F t = tanh(x * (1 / l.softcap));
        slope = 1.f - t * t;
        return t * l.softcap;
    }
    // arccosh(1 + z/2) = 2 arsinh(sqrt(z)/2), which keeps its digits near z = 0; there its slope is unbounded, and taken as 0.
    const F z = x * -2.f - 2.f, quarter = z * 0.25f, root = sqrt(max(quarter, F{}));
    slope = z > F{} ? 1.f / sqrt(max(z * (quarter + 1.f), splat(1e-37f))) : F{};
    return z > F{} ? -2.f * log1p(root + max(quarter, F{}) / (1.f + sqrt(1.f + max(quarter, F{})))) : F{};
}

// Where in a head's table of relative biases key j begins, for the block's first query and onwards.
inline int64_t relative_from(const sl_lookup& l, const Block& at, int64_t j) { return at.first - (at.key + j) + l.keys - 1; }

// Up to LANES numbers, `stride` apart; zeros beyond `count`.
inline F gather(const float* from, int64_t stride, int64_t count) {
    if (stride == 1 && count >= LANES) return load(from);
    F x{};
    for (int n = 0; n < LANES && n < count; ++n) x[n] = from[n * stride];
    return x;
}

// 1 / temperature of the queries from `r` on.
inline F coolness(const sl_lookup& l, const Block& at, int64_t r) {
    if (!l.inverse_temperatures) return splat(l.inverse_temperature);
    return gather(l.inverse_temperatures + (at.b * l.heads + at.h) * l.queries + at.first + r, 1, at.rows - r);
}

// scores in place; slopes, unless null, become the derivative of the final score by what was there.
inline void adjust(const sl_lookup& l, const Block& at, float* scores, float* slopes) {
    const float* key_bias = l.key_bias ? l.key_bias + at.b * l.key_bias_batch + at.h * l.key_bias_head + at.key : nullptr;
    const float* dense = l.dense ? l.dense + at.b * l.dense_batch + at.h * l.dense_head + at.first * l.dense_row + at.key * l.dense_column : nullptr;
    for (int64_t r = at.lane0; r < at.lane1; r += LANES) {
        const F tau = coolness(l, at, r);
        for (int64_t j = 0; j < at.keys; ++j) {
            float* row = scores + j * ROW + r;
            F x = load(row), slope = splat(1.f);
            if (key_bias) x += key_bias[j];
            if (l.map != SL_IDENTITY) x = mapped(l, x, slope);
            if (l.relative) x += gather(l.relative + at.h * l.relative_head + relative_from(l, at, j) + r, 1, at.rows - r);
            if (dense) x += gather(dense + r * l.dense_row + j * l.dense_column, l.dense_row, at.rows - r);
            store(row, x * tau);
            if (slopes) store(slopes + j * ROW + r, slope * tau);
        }
    }
}

// Where the gradients of what is added to this block's scores are summed, each null where it is not wanted.
struct AddedTo {
    float *relative, *dense, *temperature;
    int64_t dense_row, dense_column;
};

// From the gradient of final scores to that of what queries and keys gave, in place. finals: the final scores, for `temperature`.
inline void unadjust(const sl_lookup& l, const Block& at, float* ds, const float* slopes, const float* finals, const AddedTo& to) {
    if (!adjusts(l)) return;
    for (int64_t r = at.lane0; r < at.lane1; r += LANES) {
        const F tau = coolness(l, at, r);
        const int64_t count = at.rows - r < LANES ? at.rows - r : LANES;
        F by_score{};
        for (int64_t j = 0; j < at.keys; ++j) {
            float* row = ds + j * ROW + r;
            const F final_ds = load(row), cooled = final_ds * tau;
            for (int64_t n = 0; to.relative && n < count; ++n) to.relative[relative_from(l, at, j) + r + n] += cooled[n];
            for (int64_t n = 0; to.dense && n < count; ++n) to.dense[(r + n) * to.dense_row + j * to.dense_column] += cooled[n];
            if (to.temperature) by_score += final_ds * load(finals + j * ROW + r);
            store(row, l.map == SL_IDENTITY ? cooled : final_ds * load(slopes + j * ROW + r));
        }
        for (int64_t n = 0; to.temperature && n < count; ++n) to.temperature[r + n] += by_score[n];
    }
}

// The final score of one pair. to: where its derivative by x goes, or null.
inline float adjusted(const sl_lookup& l, int64_t b, int64_t h, int64_t i, int64_t j, float x, float* to = nullptr) {
    const float tau = l.inverse_temperatures ? l.inverse_temperatures[(b * l.heads + h) * l.queries + i] : l.inverse_temperature;
    F slope = splat(1.f);
    if (l.key_bias) x += l.key_bias[b * l.key_bias_batch + h * l.key_bias_head + j];
    if (l.map != SL_IDENTITY) x = mapped(l, splat(x), slope)[0];
    if (l.relative) x += l.relative[h * l.relative_head + i - j + l.keys - 1];
    if (l.dense) x += l.dense[b * l.dense_batch + h * l.dense_head + i * l.dense_row + j * l.dense_column];
    if (to) *to = slope[0] * tau;
    return x * tau;
}

}  // namespace SL_ISA
