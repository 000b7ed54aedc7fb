// One block of scores into the running moments of its queries, and into weights in place.
//
// Scores are transposed, S^T (keys x queries): lanes are queries, so maximum, sum and every statistic run down the keys with
// no reduction across a vector. With m the running maximum and t = s - m, a block adds
//     Z += sum e^t      C += sum e^2t      D += sum e^t |i - j|
// and means and variances, of s under the weights and over visible keys, are taken from near their running mean, so that
// squares do not cancel, then merged as Chan, Golub & LeVeque (1983) merge: whatever holds for two parts holds for blocks.
#pragma once

#include <algorithm>
#include <type_traits>

#include "readings.h"
#include "softlookup.h"
#include "vector.h"

namespace SL_ISA {

struct Sums;

// One panel's running moments, a lane per query.
struct Moments {
    alignas(64) float m[SL_QUERIES], z[SL_QUERIES], c[SL_QUERIES], distance[SL_QUERIES], sink[SL_QUERIES];
    alignas(64) float mean[SL_QUERIES], var[SL_QUERIES];              // of t under the weights: E[t], and Z times its variance
    alignas(64) float count[SL_QUERIES], flat_mean[SL_QUERIES], flat_var[SL_QUERIES];  // of s over visible keys; count times variance
    alignas(64) int32_t best[SL_QUERIES];
    alignas(64) float fade[SL_QUERIES], moved[SL_QUERIES], seen[SL_QUERIES];  // of the block at hand: what multiplies all before
                                                                           // it, how far the maximum moved, visible keys

    void clear(int64_t lanes) {
        for (size_t plane = 0; plane < sizeof *this / sizeof m; ++plane) std::memset(m + plane * SL_QUERIES, 0, lanes * sizeof(float));
        for (int r = 0; r < lanes; ++r) m[r] = -INF, best[r] = -1;
    }

    // The maximum, 0 for a query that has seen nothing: all its weights are 0 whatever is subtracted.
    template <bool MASKED>
    F finite_top(int64_t at) const {
        F top = load(m + at);
        return MASKED ? (top == splat(-INF) ? F{} : top) : top;
    }

    void merge(int64_t at, const Sums& sum, F near, F mean_before, F flat_near, F flat_before, F sink_here);
};

// What is at hand of a block: position of its first key, number of keys, position of the panel's first query, lanes, the row of
// its first key among the keys, and the position of each of the panel's queries where they are not consecutive (else null).
struct Span {
    int64_t key, keys, query, lane0, lane1, row;
    const int64_t* queries;

    // Positions of the queries from `lane` on, counted from the block's first key.
    F queries_from(int64_t lane) const {
        F i;
        for (int l = 0; l < LANES; ++l) i[l] = (float)((queries ? queries[lane + l] : query + lane + l) - key);
        return i;
    }
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

// Chains of dependent operations run down the keys; GROUP vectors of queries side by side keep the processor busy meanwhile.
constexpr int TOP_GROUP = 4, WEIGHT_GROUP = LANES == 16 ? 2 : 1;

// Calls body(group, lane) for GROUP vectors at a time, and for what is left one by one.
template <int GROUP, class Body>
inline void in_groups(Span at, const Body& body) {
    int64_t lane = at.lane0;
    for (; lane + GROUP * LANES <= at.lane1; lane += GROUP * LANES) body(std::integral_constant<int, GROUP>{}, lane);
    for (; lane < at.lane1; lane += LANES) body(std::integral_constant<int, 1>{}, lane);
}

// Of GROUP vectors of queries from `lane` on, hidden scores become -inf, and the maximum m rises to theirs; best: its first key
// (only where BEST); n: the number of visible keys (only where MASKED).
template <bool MASKED, bool BEST, int GROUP>
inline void rise(float* scores, const uint8_t* bits, Span at, int64_t lane, F (&m)[GROUP], I (&best)[GROUP], F (&n)[GROUP]) {
    for (int64_t j = 0; j < at.keys; ++j) {
        float* s = scores + j * ROW + lane;
#pragma GCC unroll 4
        for (int g = 0; g < GROUP; ++g) {
            F x = load(s + g * LANES);
            if (MASKED) {
                I seen = visible(bits, j, lane + g * LANES);
                n[g] += seen ? splat(1.f) : F{};
                store(s + g * LANES, x = seen ? x : splat(-INF));
            }
            if (BEST) best[g] = x > m[g] ? splat((int32_t)(at.row + j)) : best[g];
            m[g] = max(x, m[g]);
        }
    }
}

// The running maximum, its first key and the number of visible keys; hidden scores become -inf.
template <bool MASKED, bool STATISTICS>
void find_top(float* scores, const uint8_t* bits, Span at, Moments& all) {
    in_groups<TOP_GROUP>(at, [&](auto group, int64_t lane) {
        constexpr int GROUP = decltype(group)::value;
        F m[GROUP], n[GROUP] = {};
        I best[GROUP];
        for (int g = 0; g < GROUP; ++g) m[g] = load(all.m + lane + g * LANES), best[g] = load(all.best + lane + g * LANES);
        rise<MASKED, STATISTICS>(scores, bits, at, lane, m, best, n);
        for (int g = 0; g < GROUP; ++g) {
            const int64_t to = lane + g * LANES;
            F old = load(all.m + to), finite = MASKED ? (m[g] == splat(-INF) ? F{} : m[g]) : m[g];
            store(all.moved + to, old - finite);
            store(all.fade + to, exp(old - finite));
            store(all.m + to, m[g]);
            store(all.seen + to, MASKED ? n[g] : splat((float)at.keys));
            if (STATISTICS) store(all.best + to, best[g]);
        }
    });
}

// Scores become weights e^t; gives nothing but their sum.
template <bool MASKED>
void weigh(float* scores, Span at, Moments& all) {
    in_groups<TOP_GROUP>(at, [&](auto group, int64_t lane) {
        constexpr int GROUP = decltype(group)::value;
        F m[GROUP], z[GROUP] = {};
        for (int g = 0; g < GROUP; ++g) m[g] = all.finite_top<MASKED>(lane + g * LANES);
        for (int64_t j = 0; j < at.keys; ++j) {
            float* s = scores + j * ROW + lane;
#pragma GCC unroll 4
            for (int g = 0; g < GROUP; ++g) {
                F e = exp(load(s + g * LANES) - m[g]);
                store(s + g * LANES, e);
                z[g] += e;
            }
        }
        for (int g = 0; g < GROUP; ++g) {
            const int64_t to = lane + g * LANES;
            store(all.z + to, load(all.z + to) * load(all.fade + to) + z[g]);
            store(all.count + to, load(all.count + to) + load(all.seen + to));
        }
    });
}

// Mean of a block's visible scores.
template <bool MASKED>
inline F middle(const float* s, int64_t keys, F n) {
    F sum{};
    for (int64_t j = 0; j < keys; ++j) {
        F x = load(s + j * ROW);
        sum += MASKED ? (x > splat(-INF) ? x : F{}) : x;
    }
    return sum / max(n, splat(1.f));
}

// About where the weighted mean of t = s - m will be in a query's first block: from a few keys and the heaviest, of weight 1.
inline F glance(const float* s, int64_t keys, F m) {
    F z = splat(1.f), sum{};
    for (int64_t j = 0, few = std::min<int64_t>(8, keys / 16); j < few; ++j) {
        F t = load(s + j * 16 * ROW) - m, e = exp(t);
        z += e;
        sum += e > F{} ? e * t : F{};
    }
    return sum / z;
}

// Sums over one block for one vector of queries; t and s are taken from near their running means.
struct Sums {
    F z{}, c{}, d{}, a1{}, a2{}, u1{}, u2{};
};

// Where all keys of a block lie on one side of all queries, |i - j| is the way to the block's near end and the way on from
// there: a number per key instead of a vector per pair.
enum class Side { BEFORE, AFTER, STRADDLES };

// 0, 1, 2, …: read from memory, a number costs no more than a load, while converting one takes the multipliers' time.
struct Steps {
    float number[SL_KEYS];
    constexpr Steps() : number() {
        for (int j = 0; j < SL_KEYS; ++j) number[j] = (float)j;
    }
};
constexpr Steps STEPS;

template <bool MASKED, Side SIDE>
void weigh_and_measure(float* scores, Span at, Counted counted, Moments& all) {
    in_groups<WEIGHT_GROUP>(at, [&](auto group, int64_t lane) {
        constexpr int GROUP = decltype(group)::value;
        F m[GROUP], mean_before[GROUP], near[GROUP], flat_mean[GROUP], flat_before[GROUP], sink[GROUP] = {};
        F i[GROUP];
        Sums sums[GROUP];
        for (int g = 0; g < GROUP; ++g) {
            const int64_t of = lane + g * LANES;
            F n_before = load(all.count + of);
            m[g] = all.finite_top<MASKED>(of);
            // Near 0 where all before this block counts for little: a block that raises the maximum holds a weight of 1.
            F before = load(all.z + of) * load(all.fade + of);
            mean_before[g] = before > F{} ? load(all.mean + of) + load(all.moved + of) : F{};
            near[g] = mean_before[g] * (before / (before + 1.f));
            if (any(before <= F{})) near[g] = before > F{} ? near[g] : glance(scores + of, at.keys, m[g]);
            flat_mean[g] = load(all.flat_mean + of);
            flat_before[g] = flat_mean[g];
            // A block with more keys than all before it has its own middle: squares from elsewhere could cancel.
            F n_here = load(all.seen + of);
            if (any(n_before < n_here)) flat_mean[g] = n_before < n_here ? middle<MASKED>(scores + of, at.keys, n_here) : flat_mean[g];
            i[g] = at.queries_from(of);
        }
        for (int64_t j = 0; j < at.keys; ++j) {
            float* s = scores + j * ROW + lane;
            const float onward = STEPS.number[SIDE == Side::BEFORE ? at.keys - 1 - j : j];
#pragma GCC unroll 4
            for (int g = 0; g < GROUP; ++g) {
                Sums& sum = sums[g];
                F x = load(s + g * LANES), t = x - m[g], e = exp(t), off = x - flat_mean[g];
                t -= near[g];
                if (MASKED) {
                    I seen = x > splat(-INF);
                    t = seen ? t : F{};
                    off = seen ? off : F{};
                }
                store(s + g * LANES, e);
                sum.z += e;
                sum.c += e * e;
                F weighted = e * t;
                sum.a1 += weighted;
                sum.a2 += weighted * t;
                sum.u1 += off;
                sum.u2 += off * off;
                sum.d += SIDE == Side::STRADDLES ? e * abs(i[g] - onward) : e * onward;
            }
        }
        for (int64_t j = std::max<int64_t>(0, counted.first_sink - at.key); j < at.keys && at.key + j < counted.first_sink + counted.sinks; ++j)
            for (int g = 0; g < GROUP; ++g) sink[g] += load(scores + j * ROW + lane + g * LANES);
        for (int g = 0; g < GROUP; ++g) {
            if (SIDE == Side::BEFORE) sums[g].d += sums[g].z * (i[g] - (float)(at.keys - 1));
            if (SIDE == Side::AFTER) sums[g].d += sums[g].z * -i[g];
            all.merge(lane + g * LANES, sums[g], near[g], mean_before[g], flat_mean[g], flat_before[g], sink[g]);
        }
    });
}

// The mean of two parts, the second with this share; counted from the heavier one, so that a negligible one costs no digits.
inline F between(F first, F second, F share) {
    const F apart = second - first;
    return share < splat(0.5f) ? first + share * apart : second - (1.f - share) * apart;
}

// A block's own mean (counted from `near`) and variance, and the way between the two means.
inline void Moments::merge(int64_t at, const Sums& sum, F near, F mean_before, F flat_near, F flat_before, F sink_here) {
    const F faded = load(fade + at), one = splat(1.f);
    const F z_before = load(z + at) * faded, z_all = z_before + sum.z, share = sum.z / (z_all > F{} ? z_all : one);
    const F offset = sum.a1 / (sum.z > F{} ? sum.z : one), apart = sum.z > F{} ? near + offset - mean_before : F{};
    store(z + at, z_all);
    store(var + at, load(var + at) * faded + max(F{}, sum.a2 - sum.a1 * offset) + z_before * share * apart * apart);
    store(mean + at, between(mean_before, near + offset, share));
    store(c + at, load(c + at) * (faded * faded) + sum.c);
    store(distance + at, load(distance + at) * faded + sum.d);
    store(sink + at, load(sink + at) * faded + sink_here);
    const F n_before = load(count + at), n = load(seen + at), n_all = n_before + n, n_share = n / (n_all > F{} ? n_all : one);
    const F flat_here = flat_near + sum.u1 / (n > F{} ? n : one), flat_apart = n > F{} ? flat_here - flat_before : F{};
    store(count + at, n_all);
    store(flat_var + at, load(flat_var + at) + max(F{}, sum.u2 - sum.u1 * (sum.u1 / (n > F{} ? n : one))) + n_before * n_share * flat_apart * flat_apart);
    store(flat_mean + at, n > F{} ? between(flat_before, flat_here, n_share) : flat_before);
}

// One block: MASKED where `bits` hide some pairs.
template <bool MASKED>
void add_block(float* scores, const uint8_t* bits, Span at, Counted counted, bool statistics, Moments& all) {
    if (!statistics) {
        find_top<MASKED, false>(scores, bits, at, all);
        weigh<MASKED>(scores, at, all);
        return;
    }
    find_top<MASKED, true>(scores, bits, at, all);
    if (at.queries)
        weigh_and_measure<MASKED, Side::STRADDLES>(scores, at, counted, all);
    else if (at.key + at.keys - 1 <= at.query + at.lane0)
        weigh_and_measure<MASKED, Side::BEFORE>(scores, at, counted, all);
    else if (at.key >= at.query + at.lane1 - 1)
        weigh_and_measure<MASKED, Side::AFTER>(scores, at, counted, all);
    else
        weigh_and_measure<MASKED, Side::STRADDLES>(scores, at, counted, all);
}

}  // namespace SL_ISA
