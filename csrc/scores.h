// The final scores of one panel of queries and one block of keys, in whichever way they are made: by a product or additively.
#pragma once

#include "additive.h"
#include "panel.h"

namespace SL_ISA {

// Holds one panel's queries as they are needed for its scores with any block of keys.
struct ScoreMaker {
    ScoreMaker(const sl_lookup& l, Scratch& scratch)
        : columns(scratch.floats(QueryTerms::size(l))),
          queries{columns, scratch.floats(l.additive ? QueryTerms::size(l) : 1), scratch.floats(l.additive ? QueryTerms::size(l) : 1), 0},
          keys{scratch.floats(l.additive ? KeyTerms::size(l) : 1), scratch.floats(l.additive ? KeyTerms::size(l) : 1), 0},
          weight(scratch.floats(shared_width(l.width))) {}

    // False where one is not finite.
    bool take_queries(const sl_lookup& l, int64_t b, int64_t h, int64_t first, int64_t rows) {
        if (l.additive)
            take_weight(l, h, weight), queries.take(l, weight, b, h, first, rows);
        else
            pack_queries(l, b, h, first, rows, columns);
        return all_finite(columns, ROW, l.width, lanes_of(rows));
    }

    // The block of keys that `scores` is about: k, its first row.
    void take_keys(const sl_lookup& l, const float* k, int64_t count) {
        block = k;
        if (l.additive) keys.take(l, k, count);
    }

    // Rows from 0 on, lanes as in the panel. at: what `part` is of all.
    void scores(const sl_lookup& l, Part part, const Block& at, float* to) {
        if (l.additive)
            score_additively(weight, shared_width(l.width), queries, keys, part, to);
        else
            product(part.keys, part.lane1 - part.lane0, l.width, {block + part.key * l.key.row, l.key.row, 1}, columns + part.lane0, ROW,
                    to + part.lane0, ROW, nullptr);
        if (adjusts(l)) adjust(l, at, to, nullptr);
    }

  private:
    float* columns;  // (width, ROW)
    const float* block = nullptr;
    QueryTerms queries;
    KeyTerms keys;
    float* weight;
};

}  // namespace SL_ISA
