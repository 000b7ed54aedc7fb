// From a query's moments to what is read from them.
#pragma once

#include <cmath>

#include "softlookup.h"

namespace SL_ISA {

struct RowMoments {
    float m, z, mean, var, c, distance, sink, count, flat_mean, flat_var;
    int64_t best;
};

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
