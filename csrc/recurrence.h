// The recurrence of linear attention, S_t = S_{t-1} + k_t v_t^T and out_t = S_t^T q_t, some steps at a time: of those before them
// their state, among themselves all pairs (src/softlookup/linear/chunks.py).
#pragma once

#include "panel.h"
#include "product.h"
#include "scratch.h"

namespace SL_ISA {

constexpr int64_t RECUR_STEPS = 48;  // more compute more pairs, fewer leave products that are small

inline void recur(const sl_sequence& s, int64_t b, int64_t h) {
    const int64_t wide = padded(s.value_width), at = b * s.heads + h;
    Scratch scratch;
    float* sums = scratch.floats(s.width * wide);
    float* columns = scratch.floats(s.width * ROW);
    float* pairs = scratch.floats(RECUR_STEPS * ROW);
    float* copy = scratch.floats(RECUR_STEPS * wide);
    float* out = scratch.floats(RECUR_STEPS * wide);
    float* kept = scratch.floats(std::max(RECUR_STEPS, s.width));
    std::fill(kept, kept + std::max(RECUR_STEPS, s.width), 1.f);
    float* state = s.state + at * s.width * s.value_width;
    whole_vectors(state, s.value_width, s.width, s.value_width, sums);
    if (wide == s.value_width) std::memcpy(sums, state, s.width * wide * sizeof(float));
    for (int64_t step = 0; step < s.steps; step += RECUR_STEPS) {
        const int64_t rows = std::min(RECUR_STEPS, s.steps - step);
        const float *q = row_of(s.query, b, h, step), *k = row_of(s.key, b, h, step);
        const Rows v = whole_vectors(row_of(s.value, b, h, step), s.value.row, rows, s.value_width, copy);
        product(rows, wide, s.width, {q, s.query.row, 1}, sums, wide, out, wide, nullptr);
        pack_columns(q, s.query.row, rows, s.width, 1, nullptr, columns);
        product(rows, lanes_of(rows), s.width, {k, s.key.row, 1}, columns, ROW, pairs, ROW, nullptr);
        for (int64_t j = 1; j < rows; ++j) std::fill(pairs + j * ROW, pairs + j * ROW + j, 0.f);  // earlier steps read no later ones
        product(rows, wide, rows, {pairs, 1, ROW}, v.data, v.row, out, wide, kept);
        product(s.width, wide, rows, {k, 1, s.key.row}, v.data, v.row, sums, wide, kept);
        for (int64_t r = 0; r < rows; ++r) std::memcpy(s.out + ((at * s.steps) + step + r) * s.value_width, out + r * wide, s.value_width * sizeof(float));
    }
    for (int64_t d = 0; d < s.width; ++d) std::memcpy(state + d * s.value_width, sums + d * wide, s.value_width * sizeof(float));
}

}  // namespace SL_ISA
