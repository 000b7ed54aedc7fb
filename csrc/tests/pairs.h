// What the kernels compute, by its definitions: a loop over pairs in double precision.
#pragma once

#include "case.h"

using Exact = std::vector<double>;

enum Reading { MAX, LOG_Z, EXCESS, ENTROPY, VAR, COLLISION, MEAN, FLAT_VAR, SINK, DISTANCE, READINGS };
inline const char* const NAMES[READINGS] = {"max_logit", "log_z",      "excess",    "entropy",   "expected_logit_var",
                                            "collision", "logit_mean", "logit_var", "sink_mass", "distance"};

// What follows from those.
enum Derived { LOGSUMEXP, MAX_WEIGHT, EXPECTED_LOGIT, ENTROPY_RATIO, EFFECTIVE_KEYS, JACOBIAN_TRACE, DERIVED };
inline const char* const DERIVED_NAMES[DERIVED] = {"logsumexp",     "max_weight",     "expected_logit",
                                                   "entropy_ratio", "effective_keys", "jacobian_trace"};

// One query's distribution from its scores, -INF where hidden.
struct Distribution {
    double is[READINGS] = {-INF}, lead = INF;  // lead: from the second largest score to the largest
    int64_t visible = 0, argmax = -1;
    Exact p;

    Distribution(const Exact& s, int64_t key_position, int64_t query_position, int64_t first_sink, int64_t sinks) : p(s.size()) {
        double z = 0;
        for (int64_t j = 0; j < (int64_t)s.size(); ++j) {
            if (s[j] == -INF) continue;
            ++visible, is[MEAN] += s[j], lead = s[j] > is[MAX] ? s[j] - is[MAX] : std::min(lead, is[MAX] - s[j]);
            if (s[j] > is[MAX]) is[MAX] = s[j], argmax = key_position + j;
        }
        if (!visible) return;
        for (size_t j = 0; j < s.size(); ++j) z += p[j] = std::exp(s[j] - is[MAX]);
        is[LOG_Z] = std::log(z), is[MEAN] /= (double)visible;
        for (int64_t j = 0; j < (int64_t)s.size(); ++j) {
            if (s[j] == -INF) continue;
            const int64_t position = key_position + j;
            p[j] /= z;
            is[EXCESS] += p[j] * (s[j] - is[MAX]), is[COLLISION] += p[j] * p[j];
            is[ENTROPY] -= p[j] * (s[j] - is[MAX] - is[LOG_Z]);
            is[FLAT_VAR] += (s[j] - is[MEAN]) * (s[j] - is[MEAN]) / (double)visible;
            is[DISTANCE] += p[j] * (double)std::abs(query_position - position);
            is[SINK] += position >= first_sink && position < first_sink + sinks ? p[j] : 0;
        }
        for (size_t j = 0; j < s.size(); ++j)
            if (s[j] > -INF) is[VAR] += p[j] * (s[j] - is[MAX] - is[EXCESS]) * (s[j] - is[MAX] - is[EXCESS]);
    }
};

// A sum, and the size of the terms that it is made of, by which its rounding in single precision is measured.
struct Sum {
    double x = 0, size = 0;
    Sum() = default;
    Sum(double term) : x(term), size(std::abs(term)) {}
    Sum& operator+=(const Sum& other) { return x += other.x, size += other.size, *this; }
};
inline Sum operator+(Sum a, const Sum& b) { return a += b; }
inline Sum operator*(Sum a, const Sum& b) { return a.x *= b.x, a.size *= b.size, a; }
inline Sum operator-(Sum a) { return a.x = -a.x, a; }
inline Sum operator-(const Sum& a, const Sum& b) { return a + -b; }
using Sums = std::vector<Sum>;

// Readings of a lookup, and the gradients of sum <upstream, average> + sum of `by` times the readings, both per query.
struct Pairs {
    Exact average, is[READINGS], by[READINGS];
    std::vector<Exact> scores;  // of each query, -INF where hidden
    Sums received, query, key, value, key_bias, relative, dense, additive, temperature;
    std::vector<int64_t> visible, argmax;
    std::vector<bool> level;  // so nearly two largest scores that rounding decides on the argmax

    Exact derived(int which) const {
        Exact all;
        for (size_t r = 0; r < visible.size(); ++r) {
            const auto n = (double)visible[r];
            const double of[DERIVED] = {is[MAX][r] + is[LOG_Z][r], std::exp(-is[LOG_Z][r]), is[MAX][r] + is[EXCESS][r],
                                        n > 1 ? is[ENTROPY][r] / std::log(n) : 0, 1 / is[COLLISION][r], 1 - is[COLLISION][r]};
            all.push_back(n > 0 ? of[which] : which == LOGSUMEXP ? -INF : 0);
        }
        return all;
    }

    Pairs(const Case& c, bool of_average, bool of_statistics) {
        const sl_lookup& l = c.l;
        const int64_t rows = l.batch * l.heads * l.queries;
        average.resize(rows * l.value_width), query.resize(rows * l.width), key_bias.resize(l.batch * l.heads * l.keys);
        received.resize(l.batch * l.heads * l.keys);
        key.resize(l.batch * l.kv_heads * l.keys * l.width), value.resize(l.batch * l.kv_heads * l.keys * l.value_width);
        relative.resize(l.batch * l.heads * (l.queries + l.keys - 1)), dense.resize(c.dense_gradients);
        additive.resize(l.batch * l.heads * l.width), temperature.resize(rows);
        for (int r = 0; r < READINGS; ++r) {
            const bool differentiable = r != MAX && r != LOG_Z && r != EXCESS;
            is[r].resize(rows), by[r].resize(rows);
            for (double& each : by[r]) each = of_statistics && differentiable ? number() * (r == DISTANCE ? 0.001 : 1) : 0;
        }
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t bh = row / l.queries, b = bh / l.heads, h = bh % l.heads, i = row % l.queries, kv = h / (l.heads / l.kv_heads);
            Exact s(l.keys, -INF);
            Sums score(l.keys), slope(l.keys);
            for (int64_t j = 0; j < l.keys; ++j)
                if (c.sees(b, h, i, j)) s[j] = (score[j] = score_of(c, b, h, i, j, slope[j])).x;
            scores.push_back(s);
            const Distribution d(s, l.key_position, c.positions[i], c.first_sink[b], l.sinks);
            visible.push_back(d.visible), argmax.push_back(d.argmax), level.push_back(d.lead < 1e-4);
            for (int r = 0; r < READINGS; ++r) is[r][row] = d.is[r];

            const float* g = c.upstream.at(b, h, i);
            double* mean = &average[row * l.value_width];
            Sum through;  // sum p dp
            for (int64_t j = 0; j < l.keys; ++j) {
                const double weight = d.p[j] * kept(l, b, h, i, j);
                const float* v = c.value.at(b, kv, j);
                received[bh * l.keys + j] += d.p[j];
                for (int64_t e = 0; weight > 0 && e < l.value_width; ++e) mean[e] += weight * v[e];
            }
            for (int64_t e = 0; of_average && e < l.value_width; ++e) through += g[e] * mean[e];
            for (int64_t j = 0; j < l.keys; ++j) {
                if (s[j] == -INF) continue;
                Sum *dv = &value[((b * l.kv_heads + kv) * l.keys + j) * l.value_width], dp = -through;
                const double keep = kept(l, b, h, i, j);
                const float* v = c.value.at(b, kv, j);
                for (int64_t e = 0; of_average && e < l.value_width; ++e) dp += keep * g[e] * v[e], dv[e] += d.p[j] * keep * g[e];
                Sum ds = d.p[j] * dp;
                if (of_statistics) ds += of_readings(d, row, j, s[j], l, c.first_sink[b], c.positions[i]);
                temperature[row] += ds * score[j];
                pull(c, b, h, i, j, ds, slope[j]);
            }
        }
    }

    // What dropout multiplies a weight by (engines/dropout.py).
    static double kept(const sl_lookup& l, int64_t b, int64_t h, int64_t i, int64_t j) {
        if (!l.dropout.on) return 1;
        const auto mix = [](uint32_t x) {
            x = (x ^ (x >> 16)) * 0x7feb352du;
            x = (x ^ (x >> 15)) * 0x846ca68bu;
            return x ^ (x >> 16);
        };
        const uint32_t row = mix(mix(mix(l.dropout.seed + (uint32_t)b) + (uint32_t)h) + (uint32_t)(l.query_position + i));
        return mix(row + (uint32_t)(l.key_position + j) * 0x9e3779b1u) >= l.dropout.threshold ? l.dropout.scale : 0;
    }

  private:
    static double coolness(const sl_lookup& l, int64_t b, int64_t h, int64_t i) {
        return l.inverse_temperatures ? l.inverse_temperatures[(b * l.heads + h) * l.queries + i] : l.inverse_temperature;
    }

    // Its size is that of what is mapped: no map is much steeper than 1 here.
    static Sum score_of(const Case& c, int64_t b, int64_t h, int64_t i, int64_t j, Sum& slope) {
        const sl_lookup& l = c.l;
        const float *q = c.query.at(b, h, i), *k = c.key.at(b, h / (l.heads / l.kv_heads), j);
        Sum s;
        slope = coolness(l, b, h, i);
        for (int64_t e = 0; e < l.width; ++e)
            s += l.additive ? l.additive[h * l.additive_head + e] * std::tanh((double)q[e] + k[e]) : (double)l.scale * q[e] * k[e];
        if (l.key_bias) s += c.key_bias.at(b, h, 0)[j];
        if (l.map == SL_SOFTCAP) {
            const double t = std::tanh(s.x / l.softcap);
            s.x = t * l.softcap, slope = slope * (1.0 - Sum(t * t));
        } else if (l.map == SL_LORENTZ) {
            slope = slope * (s.x < -1 ? 1 / std::sqrt(s.x * s.x - 1) : 0), s.x = s.x < -1 ? -std::acosh(-s.x) : 0;
        }
        if (l.relative) s += c.relative[h * l.relative_head + i - j + l.keys - 1];
        if (l.dense) s += c.dense.all[b * l.dense_batch + h * l.dense_head + i * l.dense_row + j * l.dense_column];
        return s * coolness(l, b, h, i);
    }

    // From the gradient of a final score to those of what it is made from.
    void pull(const Case& c, int64_t b, int64_t h, int64_t i, int64_t j, const Sum& ds, const Sum& slope) {
        const sl_lookup& l = c.l;
        const int64_t bh = b * l.heads + h, kv = h / (l.heads / l.kv_heads), *to = c.dense_gradient;
        const float *q = c.query.at(b, h, i), *k = c.key.at(b, kv, j);
        Sum *dq = &query[(bh * l.queries + i) * l.width], *dk = &key[((b * l.kv_heads + kv) * l.keys + j) * l.width];
        const Sum cooled = ds * coolness(l, b, h, i), dx = ds * slope;
        relative[bh * (l.queries + l.keys - 1) + i - j + l.keys - 1] += cooled, key_bias[bh * l.keys + j] += dx;
        if (l.dense) dense[b * to[0] + h * to[1] + i * to[2] + j * to[3]] += cooled;
        for (int64_t e = 0; e < l.width; ++e) {
            if (l.additive) {
                const double t = std::tanh((double)q[e] + k[e]);
                const Sum inner = dx * l.additive[h * l.additive_head + e] * (1.0 - Sum(t * t));
                additive[bh * l.width + e] += dx * t, dq[e] += inner, dk[e] += inner;
            } else {
                dq[e] += dx * (l.scale * k[e]), dk[e] += dx * (l.scale * q[e]);
            }
        }
    }

    Sum of_readings(const Distribution& d, int64_t row, int64_t j, double s, const sl_lookup& l, int64_t first_sink, int64_t i) const {
        const int64_t position = l.key_position + j;
        const double sink = position >= first_sink && position < first_sink + l.sinks;
        const Sum off = s - Sum(d.is[MAX]) - d.is[EXCESS], apart = std::abs((double)(i - position));
        Sum weighted = -by[ENTROPY][row] * off + by[VAR][row] * (off * off + 2.0 * off - d.is[VAR]);
        weighted += 2 * by[COLLISION][row] * (d.p[j] - Sum(d.is[COLLISION])) + by[SINK][row] * (sink - Sum(d.is[SINK]));
        weighted += by[DISTANCE][row] * (apart - d.is[DISTANCE]);
        return d.p[j] * weighted + 1.0 / (double)d.visible * (by[MEAN][row] + 2 * by[FLAT_VAR][row] * (s - Sum(d.is[MEAN])));
    }
};
