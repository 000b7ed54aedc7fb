// The way back for few queries, as in a step of a decoder that is being trained: each query is one row over all keys, lanes are
// the width of a key, and nothing is packed. Scores are made as decode.h makes them, so that the maximum is the forward's own.
#pragma once

#include "backward.h"
#include "decode.h"

namespace SL_ISA {

// to += x * s, rows of whole or broken vectors.
inline void add_scaled(float* to, const float* x, float s, int64_t width) {
    int64_t d = 0;
    for (; d + LANES <= width; d += LANES) store(to + d, load(to + d) + load(x + d) * s);
    for (; d < width; ++d) to[d] += x[d] * s;
}

// Gradients of one query's scores, from the final scores in `s` and dP in `dp`: e^t there, dS here, both 0 where hidden.
inline void differentiate_row(const sl_lookup& l, const sl_upstream& up, int64_t b, int64_t at, int64_t i, const uint8_t* seen, float* s, float* dp) {
    const auto of = [&](const float* plane) { return splat(plane ? plane[at] : 0); };
    const F m = of(up.max_logit), c0 = of(up.c0), c1 = of(up.c1), c2 = of(up.c2), c3 = of(up.c3), c4 = of(up.c4), c5 = of(up.c5);
    const F distance = of(up.distance), sink = of(up.sink), lanes = __builtin_convertvector(lane_numbers(), F);
    const float from = (float)(l.query_position + i - l.key_position);
    const int64_t sink0 = l.sinks ? l.first_sink[b] - l.key_position : 0, sink1 = sink0 + l.sinks;
    for (int64_t j = 0; j < l.keys; j += LANES) {
        I shown = lane_numbers() + splat((int32_t)j) < splat((int32_t)l.keys);
        for (int n = 0; seen && n < LANES && j + n < l.keys; ++n) shown[n] = seen[j + n] ? -1 : 0;
        const F key = lanes + splat((float)j), t = shown ? load(s + j) - m : F{}, e = shown ? exp(t) : F{};
        F inner = load(dp + j) + c0 + t * (c1 + c2 * t) + c3 * e + distance * abs(from - key);
        if (up.sink) inner += key >= (float)sink0 && key < (float)sink1 ? sink : F{};
        store(s + j, e);
        store(dp + j, shown ? e * inner + c4 + c5 * t : F{});
    }
}

// All queries of key-value head g. False where something that is not finite was met.
inline bool backward_few(const sl_lookup& l, const sl_upstream& up, const sl_gradients& out, int64_t b, int64_t g) {
    const int64_t group = l.heads / l.kv_heads, wide = padded(l.width), keys = padded(l.keys);
    Scratch scratch;
    float *s = scratch.floats(keys), *dp = scratch.floats(keys), *slopes = scratch.floats(keys);
    float *query = scratch.floats(wide), *u = scratch.floats(wide), *dq = scratch.floats(wide), *du = scratch.floats(wide);
    float* tanhs = scratch.floats(l.additive ? l.keys * wide : 1);
    float* dk = out.key + (b * l.kv_heads + g) * l.keys * l.width;
    float* dv = out.value + (b * l.kv_heads + g) * l.keys * l.value_width;
    std::memset(dk, 0, l.keys * l.width * sizeof(float));
    std::memset(dv, 0, l.keys * l.value_width * sizeof(float));
    std::memset(u, 0, wide * sizeof(float));
    const bool adjusting = adjusts(l);
    float bad = 0;  // becomes NaN where something is not finite
    for (int64_t h = g * group; h < (g + 1) * group; ++h) {
        if (l.additive) std::memcpy(u, l.additive + h * l.additive_head, l.width * sizeof(float));
        std::memset(du, 0, wide * sizeof(float));
        for (int64_t i = 0; i < l.queries; ++i) {
            const int64_t at = (b * l.heads + h) * l.queries + i;
            const uint8_t* seen = l.seen ? l.seen + b * l.seen_batch + h * l.seen_head + i * l.seen_row : nullptr;
            const float* upstream = up.average.data ? row_of(up.average, b, h, i) : nullptr;
            const float *q = row_of(l.query, b, h, i), share = up.inverse_z[at];
            for (int64_t d = 0; d < l.width; ++d) query[d] = q[d] * l.scale;
            if (!all_finite(query, 0, 1, l.width)) return false;
            std::memset(dq, 0, wide * sizeof(float));
            std::memset(dp, 0, keys * sizeof(float));
            for (int64_t j = 0; j < l.keys; ++j) {
                if (seen && !seen[j]) continue;
                const float* k = row_of(l.key, b, g, j);
                if (l.additive && !all_finite(k, 0, 1, l.width)) return false;
                const float x = l.additive ? additive_score(query, k, u, l.width, tanhs + j * wide) : dot(k, query, l.width);
                s[j] = adjusting ? adjusted(l, b, h, i, j, x, slopes + j) : x;
                if (upstream) dp[j] = dot(row_of(l.value, b, g, j), upstream, l.value_width) * share;
                bad += (x + dp[j]) * 0;
            }
            drop_row(l, b, h, i, 0, l.keys, dp);
            differentiate_row(l, up, b, at, i, seen, s, dp);
            drop_row(l, b, h, i, 0, l.keys, s);
            for (int64_t j = 0; j < l.keys; ++j) {
                if (seen && !seen[j]) continue;
                const float ds = adjusting ? dp[j] * slopes[j] : dp[j];
                bad += ds * 0;
                if (upstream) add_scaled(dv + j * l.value_width, upstream, s[j] * share, l.value_width);
                if (out.key_bias) out.key_bias[(b * l.heads + h) * l.keys + j] += ds;
                if (!l.additive) {
                    add_scaled(dk + j * l.width, query, ds, l.width);
                    add_scaled(dq, row_of(l.key, b, g, j), ds * l.scale, l.width);
                    continue;
                }
                float* t = tanhs + j * wide;  // becomes dS (1 - t^2) u
                for (int64_t d = 0; d < wide; d += LANES) {
                    const F weighted = load(t + d) * ds, inner = (ds - weighted * load(t + d)) * load(u + d);
                    store(du + d, load(du + d) + weighted);
                    store(dq + d, load(dq + d) + inner);
                    store(t + d, inner);
                }
                add_scaled(dk + j * l.width, t, 1, l.width);
            }
            std::memcpy(out.query + at * l.width, dq, l.width * sizeof(float));
        }
        if (out.additive) std::memcpy(out.additive + (b * l.heads + h) * l.width, du, l.width * sizeof(float));
    }
    return bad == 0;
}

}  // namespace SL_ISA
