// A block of scores in rows, from any score at all, into the running moments of its rows and into weights in place: what
// moments.h does for the fused kernels, here for blocks that torch computed (engines/streaming.py). Lanes are keys.
#pragma once

#include <algorithm>
#include <cmath>

#include "readings.h"

namespace SL_ISA {

constexpr int64_t PEEK = 64;

typedef int8_t Bytes __attribute__((vector_size(LANES)));

// One row of a block: whole vectors, then a rest that is padded with hidden keys.
struct Row {
    float* scores;
    const uint8_t* seen;  // null: all visible
    int64_t columns;

    // Calls each(vector of scores with -inf where hidden, first column) and stores what it gives.
    template <bool MASKED, class Each>
    void map(const Each& each) const {
        int64_t j = 0;
        for (; j + LANES <= columns; j += LANES) {
            F x = load(scores + j);
            if (MASKED) x = hide(x, seen + j);
            store(scores + j, each(x, j));
        }
        if (j == columns) return;
        float rest[LANES];
        for (int l = 0; l < LANES; ++l) rest[l] = j + l < columns && (!MASKED || seen[j + l]) ? scores[j + l] : -INF;
        store(rest, each(load(rest), j));
        std::memcpy(scores + j, rest, (columns - j) * sizeof(float));
    }

    float visible() const {
        int64_t count = 0;
        for (int64_t j = 0; j < columns; ++j) count += seen[j] != 0;
        return (float)count;
    }

  private:
    static F hide(F x, const uint8_t* seen) {
        Bytes bytes;
        std::memcpy(&bytes, seen, sizeof bytes);
        return __builtin_convertvector(bytes, I) != I{} ? x : splat(-INF);
    }
};

// The row's maximum and where it is first reached; -inf and -1 where nothing is visible.
template <bool MASKED>
inline void find_top(const Row& row, float& top, int64_t& column) {
    F m = splat(-INF);
    I best = splat(-1), numbers = lane_numbers();
    row.map<MASKED>([&](F x, int64_t j) {
        best = x > m ? numbers + splat((int32_t)j) : best;
        m = max(x, m);
        return x;
    });
    top = -INF, column = -1;
    for (int l = 0; l < LANES; ++l)
        if (m[l] > top || (m[l] == top && best[l] >= 0 && best[l] < column)) top = m[l], column = best[l];
}

template <bool MASKED>
inline void fold_row(const sl_fold& f, int64_t r, const uint8_t* seen) {
    const int64_t entry = r / f.entry_rows;
    Row row{f.scores + r * f.columns, seen, f.columns};
    float top;
    int64_t column;
    find_top<MASKED>(row, top, column);
    const RowMoments before = row_of(f, r);
    const float old = before.m, m = std::max(old, top), base = m == -INF ? 0 : m;
    RowMoments here{m, 0, 0, 0, 0, 0, 0, 0, 0, 0, f.position + column};
    if (!(top > old)) here.best = before.best;
    here.count = MASKED ? row.visible() : (float)f.columns;
    const auto put = [&] {
        float fades[2];
        const RowMoments both = merged(before, here, fades);
        put_row(f, r, both);
        f.fade[r] = fades[0];
        if (!(both.z == both.z)) f.m[r] = NAN;
    };
    if (!f.statistics) {
        F z{};
        row.map<false>([&](F x, int64_t) {
            F e = exp_or_nan(x - base);
            z += e;
            return e;
        });
        here.z = total(z);
        return put();
    }
    // Means and variances are taken from near the mean, so that squares do not cancel: from the mean so far, or, where the
    // maximum moves and that may count for little, together with the first few keys of this block and the maximum.
    const float z_before = old == -INF ? 0 : before.z * std::exp(old - base), mean = z_before > 0 ? before.mean + (old - base) : 0;
    float near = mean;
    if (top > old) {
        F z{}, a{};
        for (int64_t j = 0; j + LANES <= std::min<int64_t>(f.columns, PEEK); j += LANES) {
            F t = load(row.scores + j) - base, e = exp_or_nan(t);
            z += e;
            a += e > F{} ? e * t : F{};
        }
        const float weight = z_before + total(z);
        near = (z_before * mean + total(a)) / std::max(1.f, weight);  // the maximum itself has weight 1
    }
    float flat = before.flat_mean > -INF ? before.flat_mean : 0;
    if (before.count < here.count) {  // squares from a mean of fewer keys than there are here could cancel
        F sum{};
        row.map<false>([&](F x, int64_t) {
            sum += x > splat(-INF) ? x : F{};
            return x;
        });
        flat = total(sum) / std::max(1.f, here.count);
    }
    F z{}, c{}, a1{}, a2{}, finite{}, u1{}, u2{}, d{}, s{};
    F j = __builtin_convertvector(lane_numbers(), F) + splat((float)(f.position - (f.query_position ? f.query_position[r % f.entry_rows % f.queries] : 0)));
    const int64_t sink0 = f.first_sink[entry] - f.position, sink1 = sink0 + f.sinks;
    const bool sinks = sink1 > 0 && sink0 < f.columns;
    const F first = splat((float)sink0), last = splat((float)sink1), lanes = __builtin_convertvector(lane_numbers(), F);
    row.map<false>([&](F x, int64_t column) {
        I visible = x > splat(-INF) || x != x;
        F t = x - base, e = exp_or_nan(t), off = x - flat;
        t = visible ? t - near : F{};
        off = visible ? off : F{};
        finite += visible ? splat(1.f) : F{};
        z += e;
        c += e * e;
        F weighted = e * t;
        a1 += weighted;
        a2 += weighted * t;
        u1 += off;
        u2 += off * off;
        d += e * abs(j + splat((float)column));
        if (sinks) {
            F at = lanes + splat((float)column);
            s += (at >= first && at < last) ? e : F{};
        }
        return e;
    });
    here.z = total(z), here.c = total(c), here.distance = total(d), here.sink = total(s);
    const float a = total(a1), offset = here.z > 0 ? a / here.z : 0, u = total(u1), flat_offset = here.count > 0 ? u / here.count : 0;
    here.mean = near + offset, here.var = std::max(0.f, total(a2) - a * offset);
    here.flat_mean = total(finite) < here.count ? -INF : flat + flat_offset;
    here.flat_var = std::max(0.f, total(u2) - u * flat_offset);
    put();
}

inline void fold_rows(const sl_fold& f, int64_t row0, int64_t row1) {
    for (int64_t r = row0; r < row1; ++r)
        if (f.seen)
            fold_row<true>(f, r, f.seen + r / f.entry_rows * f.seen_entry + r % f.entry_rows * f.seen_row);
        else
            fold_row<false>(f, r, nullptr);
}

}  // namespace SL_ISA
