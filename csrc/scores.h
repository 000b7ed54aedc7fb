// The final scores of panels of queries and one block of keys, in whichever way they are made: by a product or additively.
#pragma once

#include "additive.h"
#include "panel.h"

namespace SL_ISA {

// Holds the queries of some panels of one head, and one block of keys, as their scores need them.
struct ScoreMaker {
    float* weight;  // u of additive scores, filled with zeros to whole groups

    ScoreMaker(const sl_lookup& l, int64_t panels, Scratch& scratch)
        : weight(scratch.floats(shared_width(l.width))),
          columns(scratch.floats(panels * size(l))),
          exponential(scratch.floats(l.additive ? panels * size(l) : 1)),
          weighted(scratch.floats(l.additive ? panels * size(l) : 1)),
          reach(scratch.floats(panels)),
          keys{scratch.floats(l.additive ? KeyTerms::size(l) : 1), scratch.floats(l.additive ? KeyTerms::size(l) : 1), 0} {}

    // Queries first … first + rows as panel n of those that are held. False where one is not finite.
    bool take_queries(const sl_lookup& l, int64_t n, int64_t b, int64_t h, int64_t first, int64_t rows) {
        if (l.additive) {
            QueryTerms queries = terms(l, n);
            take_weight(l, h, weight);
            queries.take(l, weight, b, h, first, rows);
            reach[n] = queries.reach;
        } else {
            pack_queries(l, b, h, first, rows, columns + n * size(l));
        }
        return all_finite(columns + n * size(l), ROW, l.width, lanes_of(rows));
    }

    // The block of keys that `scores` is about: k, its first row.
    void take_keys(const sl_lookup& l, const float* k, int64_t count) {
        block = k;
        if (l.additive) keys.take(l, k, count);
    }

    // Scores of panel n: rows from 0 on, lanes as in the panel. at: what `part` is of all; slopes: see adjust.
    void scores(const sl_lookup& l, int64_t n, Part part, const Block& at, float* to, float* slopes = nullptr) const {
        if (l.additive)
            score_additively(weight, shared_width(l.width), terms(l, n), keys, part, to);
        else
            product(part.keys, part.lane1 - part.lane0, l.width, {block + part.key * l.key.row, l.key.row, 1}, columns + n * size(l) + part.lane0, ROW,
                    to + part.lane0, ROW, nullptr);
        if (adjusts(l)) adjust(l, at, to, slopes);
    }

    // The way back of additive scores: see pull_additively.
    void pull(const sl_lookup& l, int64_t n, Part part, const float* ds, float* dq, float* dk, float* du) const {
        pull_additively(shared_width(l.width), terms(l, n), keys, ds, part, dq, dk, du);
    }

  private:
    float *columns, *exponential, *weighted, *reach;
    KeyTerms keys;
    const float* block = nullptr;

    static int64_t size(const sl_lookup& l) { return l.additive ? QueryTerms::size(l) : l.width * ROW; }

    QueryTerms terms(const sl_lookup& l, int64_t n) const {
        return {columns + n * size(l), exponential + n * size(l), weighted + n * size(l), reach[n]};
    }
};

}  // namespace SL_ISA
