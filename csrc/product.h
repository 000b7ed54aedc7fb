// The only matrix product: C (rows x columns) = A B, or fade * C + A B, with C's tile held in registers.
//
// All five products of attention have this form. B is read in vectors, along its rows; A is read one number at a time and
// may lie either way, so neither scores nor keys are ever transposed:
//     S^T = K Q^T        rows = keys, columns = queries, summed over the width      (A = K, along its rows)
//     O   = fade O + P V rows = queries, columns = value width, summed over keys    (A = P^T, across its rows)
#pragma once

#include "vector.h"

namespace SL_ISA {

// How A lies: element (m, k) is a[m * row + k * column].
struct Left {
    const float* a;
    int64_t row, column;
};

// ROWS x (WIDTH vectors) of C. fade: null to overwrite C, else one factor per row for what C holds.
template <int ROWS, int WIDTH>
inline void tile(int64_t depth, Left left, const float* b, int64_t b_row, float* c, int64_t c_row, const float* fade) {
    F sum[ROWS][WIDTH] = {};
#pragma GCC unroll 12
    for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
        for (int n = 0; n < WIDTH; ++n) __builtin_prefetch(c + m * c_row + n * LANES, 1);
    const float* a = left.a;
    for (int64_t k = 0; k < depth; ++k, a += left.column, b += b_row) {
        F right[WIDTH];
#pragma GCC unroll 8
        for (int n = 0; n < WIDTH; ++n) right[n] = load(b + n * LANES);
#pragma GCC unroll 8
        for (int m = 0; m < ROWS; ++m) {
            F x = splat(a[m * left.row]);
#pragma GCC unroll 8
            for (int n = 0; n < WIDTH; ++n) sum[m][n] += x * right[n];
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < ROWS; ++m)
#pragma GCC unroll 8
        for (int n = 0; n < WIDTH; ++n) {
            float* at = c + m * c_row + n * LANES;
            store(at, fade ? load(at) * fade[m] + sum[m][n] : sum[m][n]);
        }
}

// Tiles of 6 x 4 vectors fill the 32 registers of AVX-512, of 6 x 2 the 16 of others: accumulators, a row of B and one number of A.
constexpr int TILE_ROWS = 6, TILE_WIDTH = LANES == 16 ? 4 : 2;

// At most ROWS rows as one tile.
template <int ROWS, int WIDTH>
inline void last_rows(int64_t rows, int64_t depth, Left left, const float* b, int64_t b_row, float* c, int64_t c_row, const float* fade) {
    if constexpr (ROWS > 0) {
        if (rows == ROWS) return tile<ROWS, WIDTH>(depth, left, b, b_row, c, c_row, fade);
        last_rows<ROWS - 1, WIDTH>(rows, depth, left, b, b_row, c, c_row, fade);
    }
}

template <int WIDTH>
inline void strip(int64_t rows, int64_t depth, Left left, const float* b, int64_t b_row, float* c, int64_t c_row, const float* fade) {
    constexpr int ROWS = WIDTH == 1 ? 2 * TILE_ROWS : TILE_ROWS;  // chains of dependent additions to keep the processor busy
    int64_t m = 0;
    for (; m + ROWS <= rows; m += ROWS)
        tile<ROWS, WIDTH>(depth, {left.a + m * left.row, left.row, left.column}, b, b_row, c + m * c_row, c_row, fade ? fade + m : fade);
    last_rows<ROWS - 1, WIDTH>(rows - m, depth, {left.a + m * left.row, left.row, left.column}, b, b_row, c + m * c_row, c_row, fade ? fade + m : fade);
}

// C (rows x columns), columns a multiple of LANES.
inline void product(int64_t rows, int64_t columns, int64_t depth, Left left, const float* b, int64_t b_row, float* c, int64_t c_row,
             const float* fade) {
    int64_t n = 0;
    for (; n + TILE_WIDTH * LANES <= columns; n += TILE_WIDTH * LANES) strip<TILE_WIDTH>(rows, depth, left, b + n, b_row, c + n, c_row, fade);
    for (; n < columns; n += LANES) strip<1>(rows, depth, left, b + n, b_row, c + n, c_row, fade);
}

}  // namespace SL_ISA
