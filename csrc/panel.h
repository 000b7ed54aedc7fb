// What forward and backward share: rows of the inputs as the products want them.
#pragma once

#include "adjust.h"
#include "product.h"
#include "scratch.h"
#include "softlookup.h"

namespace SL_ISA {

inline const float* row_of(const sl_tensor& x, int64_t b, int64_t h, int64_t row) {
    return x.data + b * x.batch + h * x.head + row * x.row;
}

// How many queries the panel that begins at `first` has.
inline int64_t rows_of(const sl_lookup& l, int64_t first) { return l.queries - first < SL_QUERIES ? l.queries - first : SL_QUERIES; }

inline int64_t padded(int64_t width) { return (width + LANES - 1) / LANES * LANES; }

// Rows as they are, or a copy padded with zeros to whole vectors.
struct Rows {
    const float* data;
    int64_t row;
};

inline Rows whole_vectors(const float* data, int64_t row, int64_t rows, int64_t width, float* copy) {
    int64_t wide = padded(width);
    if (wide == width) return {data, row};
    for (int64_t r = 0; r < rows; ++r) {
        std::memcpy(copy + r * wide, data + r * row, width * sizeof(float));
        std::memset(copy + r * wide + width, 0, (wide - width) * sizeof(float));
    }
    return {copy, wide};
}

// Queries of a panel as columns, scaled; columns beyond the last query are zeros.
inline void pack_queries(const sl_lookup& l, int64_t b, int64_t h, int64_t first, int64_t rows, float* packed) {
    for (int64_t r = 0; r < SL_QUERIES; ++r) {
        const float* q = row_of(l.query, b, h, r < rows ? first + r : first);
        const float scale = r < rows ? l.scale : 0.f;
        for (int64_t d = 0; d < l.width; ++d) packed[d * SL_QUERIES + r] = q[d] * scale;
    }
}

inline bool all_finite(const float* x, int64_t row, int64_t rows, int64_t width) {
    F sum[4] = {};
    float rest = 0;
    for (int64_t r = 0; r < rows; ++r, x += row) {
        int64_t d = 0;
        for (; d + 4 * LANES <= width; d += 4 * LANES)
            for (int n = 0; n < 4; ++n) sum[n] += load(x + d + n * LANES) * 0.f;
        for (; d + LANES <= width; d += LANES) sum[0] += load(x + d) * 0.f;
        for (; d < width; ++d) rest += x[d] * 0.f;
    }
    const F all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    for (int l = 0; l < LANES; ++l) rest += all[l];
    return rest == 0;
}

inline const uint8_t* bits_of(const sl_blocks& blocks, int64_t entry) {
    const int64_t bits = blocks.bits_of[entry];
    return bits < 0 ? nullptr : blocks.bits + bits * (SL_KEYS * SL_QUERIES / 8);
}

}  // namespace SL_ISA
