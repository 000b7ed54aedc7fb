// From products to final scores, for a block of transposed scores: what is added and mapped between the two, and the way back.
#pragma once

#include "softlookup.h"
#include "vector.h"

namespace SL_ISA {

// Keys key … key + keys and rows first … first + rows of the queries of head h of batch entry b, in `lanes` lanes.
struct Block {
    int64_t b, h, key, keys, first, rows, lanes;
};

inline bool adjusts(const sl_lookup& l) { return l.key_bias || l.softcap != 0 || l.relative || l.dense || l.inverse_temperature != 1; }

// Where in a head's table of relative biases key j begins, for the block's first query and onwards.
inline int64_t relative_from(const sl_lookup& l, const Block& at, int64_t j) { return at.first - (at.key + j) + l.keys - 1; }

// scores in place; slopes, unless null, become the derivative of the final score by the product.
inline void adjust(const sl_lookup& l, const Block& at, float* scores, float* slopes) {
    const float* key_bias = l.key_bias ? l.key_bias + at.b * l.key_bias_batch + at.h * l.key_bias_head + at.key : nullptr;
    const float* dense = l.dense ? l.dense + at.b * l.dense_batch + at.h * l.dense_head + at.first * l.dense_row + at.key * l.dense_column : nullptr;
    const float tau = l.inverse_temperature, cap = l.softcap, inverse_cap = cap != 0 ? 1 / cap : 0;
    for (int64_t j = 0; j < at.keys; ++j) {
        float* row = scores + j * SL_QUERIES;
        const float* near = l.relative ? l.relative + at.h * l.relative_head + relative_from(l, at, j) : nullptr;
        for (int64_t r = 0; r < at.lanes; r += LANES) {
            F x = load(row + r);
            if (key_bias) x += key_bias[j];
            if (cap != 0) {
                F t = tanh(x * inverse_cap);
                x = t * cap;
                if (slopes) store(slopes + j * SL_QUERIES + r, (1.f - t * t) * tau);
            }
            F added{};
            if (r + LANES <= at.rows) {
                if (near) added += load(near + r);
                if (dense) {
                    if (l.dense_row == 0) added += dense[j * l.dense_column];
                    else
                        for (int n = 0; n < LANES; ++n) added[n] += dense[(r + n) * l.dense_row + j * l.dense_column];
                }
            } else {  // the last queries: what lies beyond them must not be read
                for (int n = 0; n < LANES && r + n < at.rows; ++n) {
                    if (near) added[n] += near[r + n];
                    if (dense) added[n] += dense[(r + n) * l.dense_row + j * l.dense_column];
                }
            }
            store(row + r, (x + added) * tau);
        }
    }
}

// From the gradient of final scores to that of the products, in place; relative: where the gradient of the biases is summed.
inline void unadjust(const sl_lookup& l, const Block& at, float* ds, const float* slopes, float* relative) {
    if (!adjusts(l)) return;
    for (int64_t j = 0; j < at.keys; ++j) {
        float* row = ds + j * SL_QUERIES;
        if (relative) {
            float* near = relative + relative_from(l, at, j);
            for (int64_t r = 0; r < at.rows; ++r) near[r] += row[r] * l.inverse_temperature;
        }
        for (int64_t r = 0; r < at.lanes; r += LANES)
            store(row + r, l.softcap != 0 ? load(row + r) * load(slopes + j * SL_QUERIES + r) : load(row + r) * l.inverse_temperature);
    }
}

// The final score of one pair, from its product.
inline float adjusted(const sl_lookup& l, int64_t b, int64_t h, int64_t i, int64_t j, float x) {
    if (l.key_bias) x += l.key_bias[b * l.key_bias_batch + h * l.key_bias_head + j];
    if (l.softcap != 0) x = tanh(splat(x / l.softcap))[0] * l.softcap;
    if (l.relative) x += l.relative[h * l.relative_head + i - j + l.keys - 1];
    if (l.dense) x += l.dense[b * l.dense_batch + h * l.dense_head + i * l.dense_row + j * l.dense_column];
    return x * l.inverse_temperature;
}

}  // namespace SL_ISA
