// What forward and backward share: rows of the inputs as the products want them.
#pragma once

#include <algorithm>

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

// Their positions where they are not consecutive, else null.
inline const int64_t* queries_of(const sl_lookup& l, int64_t first) { return l.query_positions ? l.query_positions + first : nullptr; }

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

// Lanes that a panel of so many queries uses.
inline int64_t lanes_of(int64_t rows) { return (rows + LANES - 1) / LANES * LANES; }

// Rows as columns of a panel, ROW apart, each times a factor of its own (null: 1) and `scale`; lanes beyond the last row
// are zeros.
inline void pack_columns(const float* from, int64_t from_row, int64_t rows, int64_t width, float scale, const float* factors, float* packed) {
    for (int64_t r = 0; r < lanes_of(rows); r += LANES) {
        F factor{};
        for (int n = 0; n < LANES && r + n < rows; ++n) factor[n] = factors ? scale * factors[r + n] : scale;
        for (int64_t d = 0; d < width; d += LANES) {
            const int64_t some = width - d < LANES ? width - d : LANES;
            F block[LANES] = {};
            for (int n = 0; n < LANES && r + n < rows; ++n)
                if (some == LANES)
                    block[n] = load(from + (r + n) * from_row + d);
                else
                    std::memcpy(&block[n], from + (r + n) * from_row + d, some * sizeof(float));
            transpose(block);
            for (int64_t c = 0; c < some; ++c) store(packed + (d + c) * ROW + r, block[c] * factor);
        }
    }
}

// Queries of a panel as columns, scaled.
inline void pack_queries(const sl_lookup& l, int64_t b, int64_t h, int64_t first, int64_t rows, float* packed) {
    pack_columns(row_of(l.query, b, h, first), l.query.row, rows, l.width, l.scale, nullptr, packed);
}

// Keys key … key + keys of a block and lanes lane0 … lane1 of a panel: all of it, or one strip of lanes and the keys that it sees.
struct Part {
    int64_t key, keys, lane0, lane1;
};

// Calls visit(part) for what is to be computed of a block of `keys` keys: where some of it is hidden (`bits`), strip by strip of
// 64 lanes, as the diagonal of a causal mask leaves half of the block empty.
template <class Visit>
inline void for_each_part(const uint8_t* bits, int64_t keys, int64_t lanes, const Visit& visit) {
    if (!bits) return visit(Part{0, keys, 0, lanes});
    constexpr int64_t STRIP = 64, STRIPS = SL_QUERIES / STRIP;
    static_assert(SL_QUERIES % STRIP == 0);
    for (int64_t strip = 0; strip * STRIP < lanes; ++strip) {
        const auto sees = [&](int64_t key) {
            uint64_t word;
            std::memcpy(&word, bits + (key * STRIPS + strip) * sizeof word, sizeof word);
            return word != 0;
        };
        int64_t from = 0, to = keys;
        while (from < to && !sees(from)) ++from;
        while (from < to && !sees(to - 1)) --to;
        if (from < to) visit(Part{from, to - from, strip * STRIP, std::min(lanes, (strip + 1) * STRIP)});
    }
}

// The bits of a block from one of its keys on.
inline const uint8_t* from_key(const uint8_t* bits, int64_t key) { return bits ? bits + key * (SL_QUERIES / 8) : nullptr; }

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
