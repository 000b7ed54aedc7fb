// One query's moments: how those over two sets of keys merge, and what is read from them.
#pragma once

#include <algorithm>
#include <cmath>

#include "softlookup.h"
#include "vector.h"

namespace SL_ISA {

// As in moments.h: sums of e^t = e^(s - m), E[t] and Z times its variance, mean and count times variance of s over visible keys.
struct RowMoments {
    float m, z, mean, var, c, distance, sink, count, flat_mean, flat_var;
    int64_t best;
};

// The mean of two parts, the second with this share; counted from the heavier one, so that a negligible one costs no digits.
inline float between(float first, float second, float share) {
    return share < 0.5f ? first + share * (second - first) : second - (1 - share) * (second - first);
}

// The moments over both sets of keys (Chan, Golub & LeVeque 1983). fades: what multiplies the sums of either side.
inline RowMoments merged(const RowMoments& a, const RowMoments& b, float fades[2]) {
    const float m = std::max(a.m, b.m), fa = a.m == -INF ? 0 : std::exp(a.m - m), fb = b.m == -INF ? 0 : std::exp(b.m - m);
    fades[0] = fa, fades[1] = fb;
    const float za = a.z * fa, zb = b.z * fb, z = za + zb, share = z > 0 ? zb / z : 0;
    const float mean_b = zb > 0 ? b.mean + (b.m - m) : 0, mean_a = za > 0 ? a.mean + (a.m - m) : mean_b;
    const float n = a.count + b.count, n_share = n > 0 ? b.count / n : 0;
    const float flat_b = b.count > 0 ? b.flat_mean : a.flat_mean, flat_a = a.count > 0 ? a.flat_mean : flat_b;
    RowMoments both{m, z, between(mean_a, mean_b, share), 0, a.c * fa * fa + b.c * fb * fb, a.distance * fa + b.distance * fb, a.sink * fa + b.sink * fb, n,
                    between(flat_a, flat_b, n_share), 0, b.m > a.m ? b.best : a.best};
    both.var = a.var * fa + b.var * fb + za * share * (mean_b - mean_a) * (mean_b - mean_a);
    both.flat_var = a.flat_var + b.flat_var + a.count * n_share * (flat_b - flat_a) * (flat_b - flat_a);
    if (flat_a == -INF || flat_b == -INF) both.flat_mean = -INF, both.flat_var = NAN;  // a visible score of -inf
    return both;
}

inline RowMoments row_of(const sl_fold& f, int64_t r) {
    return {f.m[r], f.z[r], f.mean[r], f.var[r], f.c[r], f.distance[r], f.sink[r], f.count[r], f.flat_mean[r], f.flat_var[r], f.best ? f.best[r] : -1};
}

inline void put_row(const sl_fold& f, int64_t r, const RowMoments& x) {
    f.m[r] = x.m, f.z[r] = x.z, f.mean[r] = x.mean, f.var[r] = x.var, f.c[r] = x.c, f.distance[r] = x.distance, f.sink[r] = x.sink;
    f.count[r] = x.count, f.flat_mean[r] = x.flat_mean, f.flat_var[r] = x.flat_var;
    if (f.best) f.best[r] = x.best;
}

// The readings of `rows` queries, whose first is row `base` of all, from planes of their moments; at least LANES numbers of a
// plane must be readable from any row on. average: (rows, wide), the sums of weighted values; position: of the key that `best` counts from.
template <class Planes>
void write_rows(const sl_lookup& l, const sl_summary& out, int64_t base, int64_t rows, const Planes& all, const float* average, int64_t wide,
                int64_t position) {
    for (int64_t r = 0; r < rows; r += LANES) {
        const int64_t count = std::min<int64_t>(rows - r, LANES), at = base + r;
        const auto put = [&](float* plane, F x) {
            if (count == LANES) return store(plane + at, x);
            std::memcpy(plane + at, &x, count * sizeof(float));
        };
        const F z = load(all.z + r), one = splat(1.f), inverse = z > F{} ? 1.f / z : F{}, n = load(all.count + r), mean = load(all.mean + r);
        const F log_z = log1p(max(z - 1.f, F{}));  // the maximum's own weight is 1
        put(out.max_logit, load(all.m + r));
        put(out.log_z, log_z);
        for (int64_t i = 0; i < count; ++i) {
            out.visible[at + i] = (int64_t)n[i];
            for (int64_t d = 0; d < l.value_width; ++d) out.average[(at + i) * l.value_width + d] = average[(r + i) * wide + d] * inverse[i];
        }
        if (!l.statistics) continue;
        const F collision = load(all.c + r) * inverse * inverse;
        put(out.excess, mean);
        put(out.entropy, log_z - mean);
        put(out.expected_logit_var, load(all.var + r) * inverse);
        put(out.collision, collision);
        put(out.logit_mean, load(all.flat_mean + r));
        put(out.logit_var, load(all.flat_var + r) / max(n, one));
        put(out.sink_mass, load(all.sink + r) * inverse);
        put(out.distance, load(all.distance + r) * inverse);
        for (int64_t i = 0; i < count; ++i) out.argmax[at + i] = all.best[r + i] < 0 ? -1 : all.best[r + i] + position;
        const F m = load(all.m + r);
        const I some = n > F{};
        if (out.logsumexp) put(out.logsumexp, m + log_z);
        if (out.max_weight) put(out.max_weight, inverse);
        if (out.expected_logit) put(out.expected_logit, (some ? m : F{}) + mean);
        if (out.entropy_ratio) put(out.entropy_ratio, n > one ? (log_z - mean) / log1p(n - one) : F{});
        if (out.effective_keys) put(out.effective_keys, some ? one / collision : F{});
        if (out.jacobian_trace) put(out.jacobian_trace, some ? one - collision : F{});
    }
}

}  // namespace SL_ISA
