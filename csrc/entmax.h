// Entmax of one panel of queries: weights u^P with u = [(s - rho) / P]_+, P = 2 (entmax 1.5) or 1 (sparsemax), and rho such that
// they sum to 1 (src/softlookup/normalizers/entmax.py). rho depends on all keys, so all scores of a panel are made first and
// kept, SL_QUERIES numbers for every key.
//
// With m the maximum and t = s - m, u = [t / P - tau]_+ where P tau = rho - m lies between -P and 0. The search begins at
// tau = -1, where the best key alone has weight 1. ||u||_P is convex and falls with tau, so Newton's steps to where it is 1 never
// go too far. Keys only ever lose their weight on the way: each pass is over those that still have some.
#pragma once

#include <atomic>

#include "drop.h"
#include "moments.h"
#include "scores.h"

namespace SL_ISA {

// Rows that are summed up by themselves, so that rounding grows with their number and not with that of all.
constexpr int64_t TOGETHER = 64;

// u; NaN where t is. The slope of the weight is u for P = 2, and 1 where u > 0 for P = 1.
template <int P>
inline F root_weight(F t, F tau) {
    return max(F{}, t * (1.f / P) - tau);
}

template <int P>
inline F weight_of(F u) {
    return P == 2 ? u * u : u;
}

template <int P>
inline F slope_of(F u) {
    return P == 2 ? u : (u > F{} ? splat(1.f) : u);
}

// Sums over a panel's keys, a lane per query; flat: the mean of s over visible keys, each counted
// once; mean: that of t under the weights, about which `spread` sums squares.
struct Weighed {
    alignas(64) float m[SL_QUERIES], tau[SL_QUERIES], total[SL_QUERIES], slope[SL_QUERIES];
    alignas(64) float count[SL_QUERIES], flat[SL_QUERIES], flat_square[SL_QUERIES], exponential[SL_QUERIES], square[SL_QUERIES], first[SL_QUERIES];
    alignas(64) float spread[SL_QUERIES], log_weight[SL_QUERIES], support[SL_QUERIES], slope_square[SL_QUERIES], sink[SL_QUERIES];
    alignas(64) float distance[SL_QUERIES], mean[SL_QUERIES];
    alignas(64) int32_t best[SL_QUERIES];
};

// Hidden scores of a part become -inf; the maximum, its first key and the number of visible keys.
template <bool MASKED>
inline void take_scores(float* scores, const uint8_t* bits, Span at, Weighed& all) {
    in_groups<TOP_GROUP>(at, [&](auto group, int64_t lane) {
        constexpr int GROUP = decltype(group)::value;
        F m[GROUP], n[GROUP];
        I best[GROUP];
        for (int g = 0; g < GROUP; ++g)
            m[g] = load(all.m + lane + g * LANES), best[g] = load(all.best + lane + g * LANES), n[g] = load(all.count + lane + g * LANES);
        rise<MASKED, true>(scores, bits, at, lane, m, best, n);
        for (int g = 0; g < GROUP; ++g) {
            store(all.m + lane + g * LANES, m[g]), store(all.best + lane + g * LANES, best[g]);
            store(all.count + lane + g * LANES, MASKED ? n[g] : n[g] + (float)at.keys);
        }
    });
}

// scores: (rows, ROW), which become t; live: room for as many numbers as there are rows.
template <int P>
inline void find_thresholds(float* scores, int64_t rows, int64_t lanes, int32_t* live, Weighed& all) {
    constexpr int MOST = 100;
    in_groups<TOP_GROUP>(Span{0, 0, 0, 0, lanes, 0, nullptr}, [&](auto group, int64_t lane) {
        constexpr int GROUP = decltype(group)::value;
        F top[GROUP], tau[GROUP], sum[GROUP] = {}, other[GROUP] = {};  // other: sum of squares (P = 2), or number of keys
        for (int g = 0; g < GROUP; ++g) {
            top[g] = load(all.m + lane + g * LANES), top[g] = top[g] == splat(-INF) ? F{} : top[g];
            tau[g] = splat(-1.f);
        }
        // Of `count` rows, which(n): those with weight go to `live`; gives their number.
        const auto add = [&](int64_t count, const auto& which, auto fresh) {
            int64_t left = 0;
            for (int64_t from = 0; from < count; from += TOGETHER) {
                F sum_here[GROUP] = {}, other_here[GROUP] = {};
                for (int64_t n = from; n < std::min(count, from + TOGETHER); ++n) {
                    float* s = scores + which(n) * ROW + lane;
                    F most{};
#pragma GCC unroll 4
                    for (int g = 0; g < GROUP; ++g) {
                        F t = load(s + g * LANES);
                        if (decltype(fresh)::value) store(s + g * LANES, t = t - top[g]);
                        const F u = root_weight<P>(t, tau[g]);
                        sum_here[g] += u;
                        other_here[g] += P == 2 ? u * u : slope_of<P>(u);
                        most = max(most, u);
                    }
                    live[left] = (int32_t)which(n);
                    left += any(most > F{});
                }
                for (int g = 0; g < GROUP; ++g) sum[g] += sum_here[g], other[g] += other_here[g];
            }
            return left;
        };
        int64_t some = add(rows, [](int64_t row) { return row; }, std::true_type{});
        for (int step = 0; step < MOST; ++step) {
            bool moving = false;
            for (int g = 0; g < GROUP; ++g) {
                const F norm = P == 2 ? sqrt(other[g]) : sum[g];
                F by = P == 2 ? (norm - 1.f) * norm / sum[g] : (norm - 1.f) / other[g];
                by = sum[g] == F{} ? F{} : by;  // nothing is visible
                moving |= any(by > tau[g] * -2.4e-7f);
                tau[g] += by;
                sum[g] = other[g] = F{};
            }
            if (!moving) break;
            some = add(some, [&](int64_t n) { return live[n]; }, std::false_type{});
        }
        for (int g = 0; g < GROUP; ++g) store(all.tau + lane + g * LANES, tau[g]);
    });
}

// What statistics need of all visible keys: of s the mean and squares about it, the sum of e^t, and the mean of t under the
// weights. False where a visible score is -inf.
template <int P>
inline bool measure_flat(const float* scores, int64_t rows, int64_t lanes, Weighed& all) {
    I lost{};
    for (int64_t lane = 0; lane < lanes; lane += LANES) {
        F sum{}, square{}, e{}, finite{}, total{}, weighted{};
        const F n = load(all.count + lane), tau = load(all.tau + lane), m = load(all.m + lane), top = m == splat(-INF) ? F{} : m;
        F e_here{};
        for (int64_t j = 0; j < rows; ++j) {
            const F t = load(scores + j * ROW + lane);
            const I seen = t > splat(-INF);
            const F w = weight_of<P>(root_weight<P>(t, tau));
            sum += seen ? t + top : F{};
            total += w;
            weighted += w > F{} ? w * t : F{};
            finite += seen ? splat(1.f) : F{};
            e_here += exp(t);
            if (j % TOGETHER == TOGETHER - 1 || j == rows - 1) e += e_here, e_here = F{};
        }
        lost |= finite != n;
        const F some = max(n, splat(1.f)), mean = sum / some;
        F rest{};  // what rounding left out of the mean
        for (int64_t j = 0; j < rows; ++j) {
            const F t = load(scores + j * ROW + lane), off = t > splat(-INF) ? t + top - mean : F{};
            rest += off;
            square += off * off;
        }
        store(all.flat + lane, mean + rest / some), store(all.flat_square + lane, square), store(all.exponential + lane, e);
        store(all.mean + lane, total > F{} ? weighted / total : F{});
    }
    return !any(lost);
}

// t of a part becomes the weight, and `slopes` (null: not wanted) its slope; adds to the sums. False where all weights are 0.
template <int P, bool STATISTICS>
inline bool weigh_part(float* scores, float* slopes, Span at, Counted counted, Weighed& all) {
    I some{};
    for (int64_t lane = at.lane0; lane < at.lane1; lane += LANES) {
        const F tau = load(all.tau + lane);
        F total{}, slope{}, square{}, first{}, spread{}, log_weight{}, support{}, slope_square{}, sink{}, far{};
        const F mean = STATISTICS ? load(all.mean + lane) : F{}, i = STATISTICS ? at.queries_from(lane) : F{};
        for (int64_t j = 0; j < at.keys; ++j) {
            float* s = scores + j * ROW + lane;
            const F t = load(s), u = root_weight<P>(t, tau), w = weight_of<P>(u), d = slope_of<P>(u);
            some |= u > F{};
            total += w;
            slope += d;
            store(s, w);
            if (slopes) store(slopes + j * ROW + lane, d);
            if (STATISTICS) {
                const F some_t = w > F{} ? t : F{}, off = some_t - mean;  // hidden ones are -inf
                square += w * w;
                first += w * some_t;
                spread += w * off * off;
                const F inverse = 1.f / (w > F{} ? u : splat(1.f));
                log_weight += w * (-(float)P * log1p(max(F{}, inverse - 1.f)));
                support += w > F{} ? splat(1.f) : F{};
                slope_square += d * d;
                far += w * abs(i - (float)j);
                if (at.key + j >= counted.first_sink && at.key + j < counted.first_sink + counted.sinks) sink += w;
            }
        }
        const auto add = [&](float* plane, F x) { store(plane + lane, load(plane + lane) + x); };
        add(all.total, total), add(all.slope, slope);
        if (STATISTICS) {
            add(all.square, square), add(all.first, first), add(all.spread, spread), add(all.log_weight, log_weight), add(all.support, support);
            add(all.slope_square, slope_square), add(all.sink, sink), add(all.distance, far);
        }
    }
    return any(some);
}

template <int P>
inline void write_weighed(const sl_lookup& l, const sl_outcome& out, int64_t base, int64_t rows, const Weighed& all, const float* average,
                          const float* slopes, int64_t wide) {
    for (int64_t r = 0; r < rows; ++r) {
        const int64_t at = base + r;
        out.max_logit[at] = all.m[r], out.offset[at] = P * all.tau[r], out.total[at] = all.total[r], out.visible[at] = (int64_t)all.count[r];
        const float per_slope = all.slope[r] > 0 ? 1 / all.slope[r] : 0;
        for (int64_t d = 0; d < l.value_width; ++d) {
            out.average[at * l.value_width + d] = average[r * wide + d];
            if (out.slopes) out.slopes[at * l.value_width + d] = slopes[r * wide + d] * per_slope;
        }
        if (!l.statistics) continue;
        const bool none = all.count[r] == 0;
        const float m = none ? 0 : all.m[r];
        out.argmax[at] = none ? -1 : all.best[r] + l.key_position;
        out.logsumexp[at] = none ? -INF : m + std::log(all.exponential[r]);
        const float u = none ? 0 : -all.tau[r];
        out.max_weight[at] = P == 2 ? u * u : u;
        out.log_weight[at] = all.log_weight[r], out.square[at] = all.square[r], out.first[at] = all.first[r], out.spread[at] = all.spread[r];
        out.logit_mean[at] = all.flat[r], out.logit_var[at] = none ? 0 : all.flat_square[r] / all.count[r];
        out.jacobian_trace[at] = all.slope[r] - all.slope_square[r] * per_slope;
        out.sink_mass[at] = all.sink[r], out.distance[at] = all.distance[r], out.support[at] = (int64_t)all.support[r];
    }
}

// False where something that is not finite was met. checked: as in forward_panel.
template <int P>
inline bool entmax_panel(const sl_lookup& l, const sl_outcome& out, int64_t b, int64_t h, int64_t panel, int64_t panels, std::atomic<uint8_t>* checked) {
    const int64_t first = panel * SL_QUERIES, rows = rows_of(l, first), lanes = lanes_of(rows);
    const int64_t g = h / (l.heads / l.kv_heads), wide = padded(l.value_width), block = SL_KEYS * ROW;
    const int64_t list = (int64_t)l.blocks.pattern[b * l.heads + h] * panels + panel, start = l.blocks.start[list], end = l.blocks.start[list + 1];
    Scratch scratch;
    ScoreMaker make(l, 1, scratch);
    float* scores = scratch.floats((end - start) * block);
    float* slopes = out.slopes ? scratch.floats(block) : nullptr;
    float* average = scratch.floats(SL_QUERIES * wide);
    float* slope_average = scratch.floats(out.slopes ? SL_QUERIES * wide : 1);
    float* copy = scratch.floats(SL_KEYS * wide);
    float* kept = scratch.floats(SL_QUERIES);
    int32_t* live = (int32_t*)scratch.floats((end - start) * SL_KEYS + 1);
    Weighed& all = *(Weighed*)scratch.floats(sizeof(Weighed) / sizeof(float));
    if (!make.take_queries(l, 0, b, h, first, rows)) return false;
    std::memset(&all, 0, sizeof all);
    for (int64_t r = 0; r < SL_QUERIES; ++r) all.m[r] = -INF, all.best[r] = -1, kept[r] = 1;
    std::memset(average, 0, lanes * wide * sizeof(float));
    if (out.slopes) std::memset(slope_average, 0, lanes * wide * sizeof(float));
    const auto each_part = [&](int64_t entry, const auto& visit) {
        const int64_t key = l.blocks.block[entry] * SL_KEYS, keys = std::min(l.keys - key, SL_KEYS);
        const uint8_t* hidden = bits_of(l.blocks, entry);
        for_each_part(hidden, keys, lanes, [&](Part part) {
            const Block here{b, h, key + part.key, part.keys, first, rows, part.lane0, part.lane1};
            const Span at{l.key_position + here.key, part.keys, l.query_position + first, part.lane0, part.lane1, here.key, queries_of(l, first)};
            visit(part, here, at, from_key(hidden, part.key), scores + (entry - start) * block + part.key * ROW);
        });
    };
    for (int64_t entry = start; entry < end; ++entry) {
        const int64_t key = l.blocks.block[entry] * SL_KEYS, keys = std::min(l.keys - key, SL_KEYS);
        const float *k = row_of(l.key, b, g, key), *v = row_of(l.value, b, g, key);
        std::atomic<uint8_t>& known = checked[(b * l.kv_heads + g) * ((l.keys + SL_KEYS - 1) / SL_KEYS) + l.blocks.block[entry]];
        if (!known.load(std::memory_order_relaxed)) {
            if (!all_finite(k, l.key.row, keys, l.width) || !all_finite(v, l.value.row, keys, l.value_width)) return false;
            known.store(1, std::memory_order_relaxed);
        }
        float* s = scores + (entry - start) * block;
        if (bits_of(l.blocks, entry) || keys < SL_KEYS) std::fill(s, s + block, -INF);
        make.take_keys(l, k, keys);
        each_part(entry, [&](Part part, const Block& here, Span at, const uint8_t* bits, float* to) {
            make.scores(l, 0, part, here, to);
            bits ? take_scores<true>(to, bits, at, all) : take_scores<false>(to, nullptr, at, all);
        });
    }
    const int64_t all_rows = (end - start) * SL_KEYS;
    find_thresholds<P>(scores, all_rows, lanes, live, all);
    if (l.statistics && !measure_flat<P>(scores, all_rows, lanes, all)) return false;
    const Counted counted{l.sinks ? l.first_sink[b] : 0, l.sinks};
    for (int64_t entry = start; entry < end; ++entry) {
        const int64_t key = l.blocks.block[entry] * SL_KEYS, keys = std::min(l.keys - key, SL_KEYS);
        const Rows right = whole_vectors(row_of(l.value, b, g, key), l.value.row, keys, l.value_width, copy);
        each_part(entry, [&](Part part, const Block& here, Span at, const uint8_t*, float* s) {
            const bool some = l.statistics ? weigh_part<P, true>(s, slopes, at, counted, all) : weigh_part<P, false>(s, slopes, at, counted, all);
            if (!some) return;
            const auto add = [&](float* weights, float* to) {
                drop(l, here, weights);
                product(part.lane1 - part.lane0, wide, part.keys, {weights + part.lane0, 1, ROW}, right.data + part.key * right.row, right.row,
                        to + part.lane0 * wide, wide, kept);
            };
            add(s, average);
            if (slopes) add(slopes, slope_average);
        });
    }
    write_weighed<P>(l, out, (b * l.heads + h) * l.queries + first, rows, all, average, slope_average, wide);
    return all_finite(all.total, SL_QUERIES, 1, lanes) && all_finite(all.tau, SL_QUERIES, 1, lanes);
}

// ---- the way back ----------------------------------------------------------------------------------------------------

// Scores become u, 0 where hidden; false where all are 0. m: of the queries, offset: rho - m.
template <int P, bool MASKED>
inline bool root_weights(float* scores, const uint8_t* bits, Span at, const float* m, const float* offset) {
    I some{};
    for (int64_t lane = at.lane0; lane < at.lane1; lane += LANES) {
        const F top = load(m + lane), tau = load(offset + lane) * (1.f / P);
        for (int64_t j = 0; j < at.keys; ++j) {
            F u = root_weight<P>(load(scores + j * ROW + lane) - top, tau);
            if (MASKED) u = visible(bits, j, lane) ? u : F{};
            some |= u > F{};
            store(scores + j * ROW + lane, u);
        }
    }
    return any(some);
}

// u becomes the weight, and dP becomes dS = slope (dP - delta); minus_delta: of the queries.
template <int P>
inline void differentiate_entmax(float* scores, float* dp, Span at, const float* minus_delta) {
    for (int64_t lane = at.lane0; lane < at.lane1; lane += LANES) {
        const F c = load(minus_delta + lane);
        for (int64_t j = 0; j < at.keys; ++j) {
            float *s = scores + j * ROW + lane, *d = dp + j * ROW + lane;
            const F u = load(s);
            store(d, slope_of<P>(u) * (load(d) + c));
            store(s, weight_of<P>(u));
        }
    }
}

}  // namespace SL_ISA
