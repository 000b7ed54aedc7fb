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
        return all_finite(columns, SL_QUERIES, l.width, SL_QUERIES);
    }

    void scores(const sl_lookup& l, const float* k, const Block& at, float* to) {
        if (l.additive) {
            keys.take(l, k, at.keys);
            score_additively(weight, shared_width(l.width), queries, keys, at.keys, at.lanes, to);
        } else {
            product(at.keys, at.lanes, l.width, {k, l.key.row, 1}, columns, SL_QUERIES, to, SL_QUERIES, nullptr);
        }
        if (adjusts(l)) adjust(l, at, to, nullptr);
    }

  private:
    float* columns;  // (width, SL_QUERIES)
    QueryTerms queries;
    KeyTerms keys;
    float* weight;
};

}  // namespace SL_ISA
