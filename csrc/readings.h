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

inline void write_row(const sl_lookup& l, const sl_summary& out, int64_t at, const RowMoments& x, const float* average) {
    const float inverse = x.z > 0 ? 1 / x.z : 0, log_z = x.z > 0 ? std::log(x.z) : 0;
    for (int64_t d = 0; d < l.value_width; ++d) out.average[at * l.value_width + d] = average[d] * inverse;
    out.max_logit[at] = x.m;
    out.log_z[at] = log_z;
    out.visible[at] = (int64_t)x.count;
    if (!l.statistics) return;
    out.excess[at] = x.mean;
    out.entropy[at] = log_z - x.mean;
    out.expected_logit_var[at] = x.var * inverse;
    out.collision[at] = x.c * inverse * inverse;
    out.logit_mean[at] = x.flat_mean;
    out.logit_var[at] = x.count > 0 ? x.flat_var / x.count : 0;
    out.sink_mass[at] = x.sink * inverse;
    out.distance[at] = x.distance * inverse;
    out.argmax[at] = x.best;
}

}  // namespace SL_ISA
