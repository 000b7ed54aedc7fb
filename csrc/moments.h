// One block of scores into the running moments of its queries, and into weights in place.
//
// Scores are transposed, S^T (keys x queries): lanes are queries, so maximum, sum and every statistic run down the keys with
// no reduction across a vector. With m the running maximum and t = s - m, a block adds
//     Z += sum e^t      C += sum e^2t      D += sum e^t |i - j|
// and means and variances, of s under the weights and over visible keys, are taken from near their running mean, so that
// squares do not cancel, then merged as Chan, Golub & LeVeque (1983) merge: whatever holds for two parts holds for blocks.
#pragma once

#include "softlookup.h"
#include "vector.h"

namespace SL_ISA {

// One panel's running moments, a lane per query.
struct Moments {
    alignas(64) float m[SL_QUERIES], z[SL_QUERIES], c[SL_QUERIES], distance[SL_QUERIES], sink[SL_QUERIES];
    alignas(64) float mean[SL_QUERIES], var[SL_QUERIES];              // of t under the weights: E[t], and Z times its variance
    alignas(64) float count[SL_QUERIES], flat_mean[SL_QUERIES], flat_var[SL_QUERIES];  // of s over visible keys; count times variance
    alignas(64) int32_t best[SL_QUERIES];
    alignas(64) float fade[SL_QUERIES];  // what this block multiplies everything before it by

    void clear() {
        std::memset(this, 0, sizeof *this);
        for (int r = 0; r < SL_QUERIES; ++r) m[r] = -INF, best[r] = -1;
    }
};

// Where a block lies: position of its first key, number of keys, position of the panel's first query.
struct Span {
    int64_t key, keys, query;
};

struct Counted {
    int64_t first_sink, sinks;
};

// Which of the block's keys are visible to the LANES queries from `lane` on, as a mask of lanes.
inline I visible(const uint8_t* bits, int64_t key, int64_t lane) {
    uint32_t word = 0;
    std::memcpy(&word, bits + (key * SL_QUERIES + lane) / 8, LANES == 4 ? 1 : LANES / 8);
    if (LANES == 4) word >>= lane % 8;
    I one;
    for (int l = 0; l < LANES; ++l) one[l] = 1 << l;
    return (splat((int32_t)word) & one) != I{};
}

// Mean of a block's visible scores.
template <bool MASKED>
inline F middle(const float* s, int64_t keys, F n) {
    F sum{};
    for (int64_t j = 0; j < keys; ++j) {
        F x = load(s + j * SL_QUERIES);
        sum += MASKED ? (x > splat(-INF) ? x : F{}) : x;
    }
    return sum / max(n, splat(1.f));
}

// MASKED: some pairs are hidden, by `bits`. STATISTICS: all moments, not only m and z.
template <bool MASKED, bool STATISTICS>
void add_block(float* scores, const uint8_t* bits, Span at, Counted counted, Moments& all) {
    const bool before = at.key + at.keys - 1 <= at.query, after = at.key >= at.query + SL_QUERIES - 1;
    for (int64_t lane = 0; lane < SL_QUERIES; lane += LANES) {
        float* s = scores + lane;
        F old = load(all.m + lane), m = old, n{};
        I best = load(all.best + lane);
        for (int64_t j = 0; j < at.keys; ++j) {
            F x = load(s + j * SL_QUERIES);
            if (MASKED) {
                I seen = visible(bits, j, lane);
                n += seen ? splat(1.f) : F{};
                store(s + j * SL_QUERIES, x = seen ? x : splat(-INF));
            }
            if (STATISTICS) {
                I higher = x > m;
                best = higher ? splat((int32_t)(at.key + j)) : best;
                m = higher ? x : m;
            } else {
                m = max(x, m);
            }
        }
        if (!MASKED) n = splat((float)at.keys);
        F n_before = load(all.count + lane);
        store(all.count + lane, n_before + n);
        if (MASKED) {  // nothing seen yet: any finite maximum will do, as all weights are 0
            I none = m == splat(-INF);
            store(all.m + lane, m);
            m = none ? F{} : m;
        } else {
            store(all.m + lane, m);
        }
        F z_before = load(all.z + lane);
        F moved = old - m, fade = exp_negative(moved);
        store(all.fade + lane, fade);
        z_before *= fade;
        F z{};
        if (!STATISTICS) {
            for (int64_t j = 0; j < at.keys; ++j) {
                F e = exp_negative(load(s + j * SL_QUERIES) - m);
                store(s + j * SL_QUERIES, e);
                z += e;
            }
            store(all.z + lane, z_before + z);
            continue;
        }
        store(all.best + lane, best);
        F mean = load(all.mean + lane), flat_mean = load(all.flat_mean + lane);
        I started = z_before > F{};
        mean = started ? mean + moved : F{};
        if (any(n_before == F{})) flat_mean = n_before > F{} ? flat_mean : middle<MASKED>(s, at.keys, n);
        F c{}, d{}, a1{}, a2{}, u1{}, u2{};
        F i;
        for (int l = 0; l < LANES; ++l) i[l] = (float)(at.query + lane + l);
        // Where all keys lie on one side, |i - j| is the way to the block's near end and the way on from there.
        const float onward = before ? -1.f : 1.f, start = before ? (float)(at.keys - 1) : 0.f;
        const bool straddles = MASKED || !(before || after);
        for (int64_t j = 0; j < at.keys; ++j) {
            F x = load(s + j * SL_QUERIES), t = x - m, e = exp_negative(t), off = x - flat_mean;
            t -= mean;
            if (MASKED) {
                I seen = x > splat(-INF);
                t = seen ? t : F{};
                off = seen ? off : F{};
            }
            store(s + j * SL_QUERIES, e);
            z += e;
            c += e * e;
            F weighted = e * t;
            a1 += weighted;
            a2 += weighted * t;
            u1 += off;
            u2 += off * off;
            d += straddles ? e * abs(i - (float)(at.key + j)) : e * (start + onward * (float)j);
        }
        if (!straddles) d += z * (before ? i - (float)(at.key + at.keys - 1) : (float)at.key - i);
        store(all.distance + lane, load(all.distance + lane) * fade + d);
        store(all.c + lane, load(all.c + lane) * (fade * fade) + c);
        // Merge: the block's own mean and variance, and the way between the two means.
        F total = z_before + z, safe = z > F{} ? z : splat(1.f), share = z / (total > F{} ? total : splat(1.f));
        F apart = a1 / safe;
        store(all.z + lane, total);
        store(all.var + lane, load(all.var + lane) * fade + (a2 - a1 * apart) + z_before * share * apart * apart);
        store(all.mean + lane, mean + share * apart);
        F n_total = n_before + n, n_safe = n > F{} ? n : splat(1.f), n_share = n / (n_total > F{} ? n_total : splat(1.f));
        F flat_apart = u1 / n_safe;
        store(all.flat_var + lane, load(all.flat_var + lane) + (u2 - u1 * flat_apart) + n_before * n_share * flat_apart * flat_apart);
        store(all.flat_mean + lane, flat_mean + n_share * flat_apart);
        F sink = load(all.sink + lane) * fade;
        for (int64_t j = 0; j < at.keys; ++j)
            if (at.key + j >= counted.first_sink && at.key + j < counted.first_sink + counted.sinks) sink += load(s + j * SL_QUERIES);
        store(all.sink + lane, sink);
    }
}

}  // namespace SL_ISA
