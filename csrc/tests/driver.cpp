// Every kernel against loops over pairs in double precision, over shapes, strides, masks and biases; made for sanitizers (make
// sanitize). `driver` runs all cases, `driver 17` one of them, with the instructions that SOFTLOOKUP_INSTRUCTIONS names.
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <utility>

#include "pairs.h"

namespace {

constexpr int64_t CASES = 300;

std::string about;  // the case at hand

// Says what disagrees, a line for each tensor.
struct Judge {
    int64_t compared = 0, failures = 0;

    void fail(const char* kernel, const char* what, int64_t at, double got, double want) {
        ++failures;
        std::printf("%s: %s: %s[%ld]: expected %.9g, got %.9g\n", about.c_str(), kernel, what, (long)at, want, got);
    }

    void result(const char* kernel, int32_t got, int32_t want) {
        if (++compared, got != want) fail(kernel, "result", 0, got, want);
    }

    void same(const char* kernel, const char* what, const Numbers& got, const Sums& want, double within = 1e-5) {
        ++compared;
        for (size_t x = 0; x < want.size(); ++x)
            if (!(std::abs(got[x] - want[x].x) <= within * want[x].size)) return fail(kernel, what, (int64_t)x, got[x], want[x].x);
    }

    template <class Got, class Want>
    void same(const char* kernel, const char* what, const std::vector<Got>& got, const std::vector<Want>& want, double within = 1e-5) {
        double largest = 1;
        for (Want x : want)
            if (std::isfinite((double)x)) largest = std::max(largest, std::abs((double)x));
        ++compared;
        for (size_t x = 0; x < want.size(); ++x) {
            const double a = (double)got[x], b = (double)want[x];
            if (a != b && !(std::abs(a - b) <= within * largest)) return fail(kernel, what, (int64_t)x, a, b);
        }
    }
};

// Buffers for what a lookup gives: without statistics there are none of most readings.
struct Output {
    Numbers average, is[READINGS], derived[DERIVED];
    std::vector<int64_t> visible, argmax;
    sl_summary to{};

    explicit Output(const sl_lookup& l) {
        const int64_t rows = l.batch * l.heads * l.queries;
        float** of[READINGS] = {&to.max_logit, &to.log_z,      &to.excess,    &to.entropy,   &to.expected_logit_var,
                                &to.collision, &to.logit_mean, &to.logit_var, &to.sink_mass, &to.distance};
        for (int r = 0; r < (l.statistics ? READINGS : EXCESS); ++r) is[r].assign(rows, HOLE), *of[r] = is[r].data();
        float** follows[DERIVED] = {&to.logsumexp, &to.max_weight, &to.expected_logit, &to.entropy_ratio, &to.effective_keys, &to.jacobian_trace};
        for (int r = 0; l.statistics && r < DERIVED; ++r) derived[r].assign(rows, HOLE), *follows[r] = derived[r].data();
        average.assign(rows * l.value_width, HOLE), visible.assign(rows, -2), argmax.assign(l.statistics ? rows : 0, -2);
        to.average = average.data(), to.visible = visible.data(), to.argmax = argmax.data();
    }
};

using Forward = decltype(&sl_forward);

void check_forward(const char* kernel, Forward run, const Case& c, const Pairs& pairs, Judge& judge) {
    Output out(c.l);
    judge.result(kernel, run(&c.l, &out.to), 0);
    judge.same(kernel, "average", out.average, pairs.average);
    judge.same(kernel, "visible", out.visible, pairs.visible, 0);
    for (int r = 0; r < READINGS; ++r)
        if (!out.is[r].empty()) judge.same(kernel, NAMES[r], out.is[r], pairs.is[r]);
    for (int r = 0; r < DERIVED; ++r)
        if (!out.derived[r].empty()) judge.same(kernel, DERIVED_NAMES[r], out.derived[r], pairs.derived(r));
    for (size_t r = 0; r < out.argmax.size(); ++r)
        if (pairs.level[r]) out.argmax[r] = pairs.argmax[r];
    if (c.l.statistics) judge.same(kernel, "argmax", out.argmax, pairs.argmax, 0);
}

void check_received(const Case& c, const Pairs& pairs, Judge& judge) {
    Numbers max_logit(pairs.is[MAX].begin(), pairs.is[MAX].end()), inverse_z(max_logit.size()), received(pairs.received.size());
    for (size_t r = 0; r < inverse_z.size(); ++r) inverse_z[r] = (float)std::exp(-pairs.is[LOG_Z][r]);
    judge.result("received", sl_received(&c.l, max_logit.data(), inverse_z.data(), received.data()), 0);
    judge.same("received", "received", received, pairs.received);
}

// One number per query for each coefficient of sl_upstream, as docs/semantics.md and streaming.coefficients have them.
struct Coefficients {
    Numbers m, inverse_z, c0, c1, c2, c3, c4, c5, sink, distance;

    Coefficients(const Case& c, const Pairs& pairs, bool of_average) {
        for (Numbers* plane : {&m, &inverse_z, &c0, &c1, &c2, &c3, &c4, &c5, &sink, &distance}) plane->reserve(pairs.visible.size());
        for (size_t r = 0; r < pairs.visible.size(); ++r) {
            const auto is = [&](Reading x) { return pairs.is[x][r]; };
            const auto by = [&](Reading x) { return pairs.by[x][r]; };
            const int64_t bh = (int64_t)r / c.l.queries;
            const float* g = c.upstream.at(bh / c.l.heads, bh % c.l.heads, (int64_t)r % c.l.queries);
            const double share = std::exp(-is(LOG_Z)), x = is(EXCESS), n = (double)std::max<int64_t>(1, pairs.visible[r]);
            double all = by(ENTROPY) * x + by(VAR) * (x * x - 2 * x - is(VAR)) - 2 * by(COLLISION) * is(COLLISION);
            all -= by(SINK) * is(SINK) + by(DISTANCE) * is(DISTANCE);
            for (int64_t e = 0; of_average && e < c.l.value_width; ++e) all -= g[e] * pairs.average[(int64_t)r * c.l.value_width + e];
            const double m = pairs.visible[r] ? is(MAX) : 0;
            add(this->m, is(MAX)), add(inverse_z, share), add(c0, all * share);
            add(c1, (2 * by(VAR) * (1 - x) - by(ENTROPY)) * share), add(c2, by(VAR) * share), add(c3, 2 * by(COLLISION) * share * share);
            add(c4, (by(MEAN) - 2 * by(FLAT_VAR) * (is(MEAN) - m)) / n), add(c5, 2 * by(FLAT_VAR) / n);
            add(sink, by(SINK) * share), add(distance, by(DISTANCE) * share);
        }
    }

  private:
    static void add(Numbers& to, double x) { to.push_back((float)x); }
};

// few: by the kernel for few queries, which has no gradients of biases and temperatures.
void check_backward(const Case& c, const Pairs& pairs, bool of_average, bool of_statistics, int64_t parts, bool few, Judge& judge) {
    const char* kernel = few ? "backward of few" : "backward";
    Coefficients of(c, pairs, of_average);
    sl_upstream up{};
    up.average = c.upstream.view(), up.max_logit = of.m.data(), up.inverse_z = of.inverse_z.data(), up.c0 = of.c0.data();
    if (!of_average) up.average = {};
    if (of_statistics) {
        up.c1 = of.c1.data(), up.c2 = of.c2.data(), up.c3 = of.c3.data(), up.c4 = of.c4.data(), up.c5 = of.c5.data();
        up.sink = of.sink.data(), up.distance = of.distance.data();
    }
    struct Wanted {
        const char* name;
        const Sums& exact;
        bool wanted, by_parts;
        Numbers got;
    };
    Wanted all[] = {{"query", pairs.query, true, true, {}},
                    {"key", pairs.key, true, false, {}},
                    {"value", pairs.value, true, false, {}},
                    {"key_bias", pairs.key_bias, c.l.key_bias != nullptr, false, {}},
                    {"relative", pairs.relative, c.l.relative != nullptr && !few, true, {}},
                    {"dense", pairs.dense, c.l.dense != nullptr && !few, false, {}},
                    {"additive", pairs.additive, c.l.additive != nullptr, true, {}},
                    {"temperature", pairs.temperature, c.l.inverse_temperatures != nullptr && !few, true, {}}};
    sl_gradients out{};
    float** to[] = {&out.query, &out.key, &out.value, &out.key_bias, &out.relative, &out.dense, &out.additive, &out.temperature};
    for (size_t x = 0; x < std::size(all); ++x) {
        if (!all[x].wanted) continue;
        all[x].got.assign((all[x].by_parts ? parts : 1) * all[x].exact.size(), x == 0 ? HOLE : 0);  // all but queries' begin as zeros
        *to[x] = all[x].got.data();
    }
    out.dense_batch = c.dense_gradient[0], out.dense_head = c.dense_gradient[1];
    out.dense_row = c.dense_gradient[2], out.dense_column = c.dense_gradient[3], out.parts = parts;
    judge.result(kernel, (few ? sl_backward_few : sl_backward)(&c.l, &up, &out), 0);
    for (Wanted& each : all) {
        if (!each.wanted) continue;
        for (size_t size = each.exact.size(), x = size; x < each.got.size(); ++x) each.got[x % size] += each.got[x];
        judge.same(kernel, each.name, each.got, each.exact);
    }
}

// One query's weights [(s - rho) / power]_+ ^ power, which sum to 1, by bisection.
Exact entmax_of(const Exact& s, int power) {
    const double top = *std::max_element(s.begin(), s.end());
    Exact w(s.size());
    if (top == -INF) return w;
    double low = -1, high = 0, total = 0;
    for (int step = 0; step < 60; ++step) {
        const double tau = (low + high) / 2;
        total = 0;
        for (size_t j = 0; j < s.size(); ++j) total += w[j] = std::pow(std::max(0.0, (s[j] - top) / power - tau), power);
        (total >= 1 ? low : high) = tau;
    }
    return w;
}

// Entmax 1.5 and sparsemax: values and sums; of the way back, that it reads and writes what it may (tests/engines compare it).
void check_entmax(Case& c, const Pairs& pairs, Judge& judge) {
    sl_lookup& l = c.l;
    const int64_t rows = l.batch * l.heads * l.queries;
    for (const int power : {2, 1}) {
        l.rule = power == 2 ? SL_ENTMAX15 : SL_SPARSEMAX;
        Numbers average(rows * l.value_width, HOLE), slopes = average, is[14];
        std::vector<int64_t> visible(rows, -2), argmax = visible, support = visible;
        for (Numbers& each : is) each.assign(rows, HOLE);
        sl_outcome out{};
        float** to[14] = {&out.total, &out.max_logit, &out.offset, &out.logsumexp, &out.max_weight, &out.log_weight, &out.square, &out.first,
                          &out.spread, &out.logit_mean, &out.logit_var, &out.jacobian_trace, &out.sink_mass, &out.distance};
        for (int x = 0; x < (l.statistics ? 14 : 3); ++x) *to[x] = is[x].data();
        out.average = average.data(), out.slopes = slopes.data(), out.visible = visible.data();
        if (l.statistics) out.argmax = argmax.data(), out.support = support.data();
        judge.result("entmax", sl_entmax(&l, &out), 0);
        Exact want(rows * l.value_width), total, collision, entropy, distance, sink, mean;
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t bh = r / l.queries, b = bh / l.heads, h = bh % l.heads, i = r % l.queries;
            const Exact w = entmax_of(pairs.scores[r], power);
            double sums[5] = {};
            for (int64_t j = 0; j < l.keys; ++j) {
                const double position = (double)(l.key_position + j), kept = Pairs::kept(l, b, h, i, j);
                const float* v = c.value.at(b, h / (l.heads / l.kv_heads), j);
                for (int64_t e = 0; w[j] > 0 && e < l.value_width; ++e) want[r * l.value_width + e] += w[j] * kept * v[e];
                sums[0] += w[j], sums[1] += w[j] * w[j], sums[2] += w[j] > 0 ? w[j] * std::log(w[j]) : 0;
                sums[3] += w[j] * std::abs((double)c.positions[i] - position);
                sums[4] += position >= (double)c.first_sink[b] && position < (double)(c.first_sink[b] + l.sinks) ? w[j] : 0;
            }
            total.push_back(sums[0]), collision.push_back(sums[1]), entropy.push_back(sums[2]), distance.push_back(sums[3]), sink.push_back(sums[4]);
            mean.push_back(pairs.visible[r] ? pairs.is[MEAN][r] : 0);
        }
        constexpr double NEAR = 1e-4;  // a weight follows its score by the slope, and scores are rounded
        judge.same("entmax", "average", average, want, NEAR), judge.same("entmax", "visible", visible, pairs.visible, 0);
        judge.same("entmax", "total", is[0], total, NEAR), judge.same("entmax", "max_logit", is[1], pairs.is[MAX]);
        if (l.statistics) {
            judge.same("entmax", "square", is[6], collision, NEAR), judge.same("entmax", "log_weight", is[5], entropy, NEAR);
            judge.same("entmax", "distance", is[13], distance, NEAR), judge.same("entmax", "sink_mass", is[12], sink, NEAR);
            judge.same("entmax", "logit_mean", is[9], mean), judge.same("entmax", "logit_var", is[10], pairs.is[FLAT_VAR]);
            judge.same("entmax", "logsumexp", is[3], pairs.derived(LOGSUMEXP));
        }
        Numbers ones(rows, 1), zeros(rows, 0), gradients[8];
        sl_upstream up{};
        up.average = c.upstream.view(), up.max_logit = is[1].data(), up.inverse_z = ones.data(), up.c0 = zeros.data(), up.c1 = is[2].data();
        sl_gradients back{};
        float** into[8] = {&back.query, &back.key, &back.value, &back.key_bias, &back.relative, &back.dense, &back.additive, &back.temperature};
        const Sums* like[8] = {&pairs.query, &pairs.key, &pairs.value, &pairs.key_bias, &pairs.relative, &pairs.dense, &pairs.additive, &pairs.temperature};
        const bool wanted[8] = {true, true, true, l.key_bias != nullptr, l.relative != nullptr, l.dense != nullptr, l.additive != nullptr, l.inverse_temperatures != nullptr};
        for (int x = 0; x < 8; ++x)
            if (wanted[x]) gradients[x].assign(like[x]->size(), 0), *into[x] = gradients[x].data();
        back.dense_batch = c.dense_gradient[0], back.dense_head = c.dense_gradient[1];
        back.dense_row = c.dense_gradient[2], back.dense_column = c.dense_gradient[3], back.parts = 1;
        judge.result("backward of entmax", sl_backward(&l, &up, &back), 0);
        Sums dv(pairs.value.size());  // what values get needs no delta: their weights, times what comes from above
        for (int64_t r = 0; r < rows; ++r) {
            const int64_t bh = r / l.queries, b = bh / l.heads, h = bh % l.heads, i = r % l.queries;
            const Exact w = entmax_of(pairs.scores[r], power);
            for (int64_t j = 0; j < l.keys; ++j)
                for (int64_t e = 0; w[j] > 0 && e < l.value_width; ++e)
                    dv[((b * l.kv_heads + h / (l.heads / l.kv_heads)) * l.keys + j) * l.value_width + e] += w[j] * Pairs::kept(l, b, h, i, j) * c.upstream.at(b, h, i)[e];
        }
        Exact plain;
        for (const Sum& each : dv) plain.push_back(each.x);
        judge.same("backward of entmax", "value", gradients[2], plain, NEAR);
    }
    l.rule = SL_SOFTMAX;
}

// Blocks of scores that something else computed, one after another.
void check_fold(Judge& judge) {
    const int64_t entries = pick({1, 2, 3}), heads = pick({1, 2}), queries = pick({1, 5, 17}), rows = entries * heads * queries;
    const int64_t position = pick({0, 11}), keys = pick({1, 15, 16, 17, 97, 400});
    const bool masked = chance(60), statistics = chance(75);
    std::vector<Exact> scores(rows);
    std::vector<int64_t> positions(queries), first_sink(entries), best(rows, -1), argmax;
    for (int64_t& each : positions) each = below(500);
    for (int64_t& each : first_sink) each = pick({0, position, position + 16});
    Numbers state[11];
    for (Numbers& each : state) each.assign(rows, 0);
    Numbers &m = state[0], &fade = state[10];
    m.assign(rows, -INF);

    sl_fold f{};
    float** to[11] = {&f.m, &f.z, &f.mean, &f.var, &f.c, &f.distance, &f.sink, &f.count, &f.flat_mean, &f.flat_var, &f.fade};
    for (int x = 0; x < 11; ++x) *to[x] = state[x].data();
    f.best = best.data(), f.rows = rows, f.entry_rows = heads * queries, f.query_position = positions.data(), f.queries = queries;
    f.first_sink = first_sink.data(), f.sinks = pick({0, 1, 4}), f.statistics = statistics, f.threads = (int32_t)pick({1, 3});
    for (int64_t key = 0; key < keys; key += f.columns) {
        f.columns = std::min(pick({1, 7, 16, 33, 96}), keys - key), f.position = position + key;
        f.seen_row = f.columns + pick({0, 3}), f.seen_entry = f.entry_rows * f.seen_row;
        std::vector<uint8_t> seen((rows - 1) * f.seen_row + f.columns, 1);
        Numbers block(rows * f.columns);
        Exact weights(rows * f.columns), faded(rows);
        for (int64_t r = 0; r < rows; ++r) {
            const double old = scores[r].empty() ? -INF : *std::max_element(scores[r].begin(), scores[r].end());
            for (int64_t j = 0; j < f.columns; ++j) {
                const bool visible = !masked || (r > 0 && chance(50));
                block[r * f.columns + j] = visible || chance(50) ? 3 * number() : HOLE;  // what is hidden may be anything
                seen[r * f.seen_row + j] = visible;
                scores[r].push_back(visible ? block[r * f.columns + j] : -INF);
            }
            const double top = *std::max_element(scores[r].begin(), scores[r].end());
            faded[r] = old == -INF ? 0 : std::exp(old - top);
            for (int64_t j = 0; j < f.columns; ++j)
                weights[r * f.columns + j] = top == -INF ? 0 : std::exp(scores[r][scores[r].size() - f.columns + j] - top);
        }
        f.scores = block.data(), f.seen = masked ? seen.data() : nullptr;
        sl_fold_block(&f);
        judge.same("fold", "weights", block, weights), judge.same("fold", "fade", fade, faded);
    }
    Exact want[10];
    for (int64_t r = 0; r < rows; ++r) {
        const Distribution d(scores[r], position, positions[r % queries], first_sink[r / f.entry_rows], f.sinks);
        const double z = d.visible ? std::exp(d.is[LOG_Z]) : 0, n = (double)d.visible;
        const double row[10] = {d.is[MAX],          z,              d.is[EXCESS], d.is[VAR] * z, d.is[COLLISION] * z * z,
                                d.is[DISTANCE] * z, d.is[SINK] * z, n,            d.is[MEAN],    d.is[FLAT_VAR] * n};
        for (int x = 0; x < 10; ++x) want[x].push_back(row[x]);
        argmax.push_back(d.lead < 1e-6 ? best[r] : d.argmax);
    }
    const char* const names[10] = {"m", "z", "mean", "var", "c", "distance", "sink", "count", "flat_mean", "flat_var"};
    for (int x = 0; x < 10; ++x)
        if (statistics || x < 2 || x == 7) judge.same("fold", names[x], state[x], want[x]);
    judge.same("fold", "best", best, argmax, 0);
}

// Steps of linear attention, one after another.
void check_recurrence(Judge& judge) {
    const int64_t batch = pick({1, 2}), heads = pick({1, 3}), steps = pick({1, 5, 47, 48, 49, 150}), width = pick({1, 8, 17, 64});
    const int64_t value_width = pick({1, 9, 16, 65}), all = batch * heads, gap = pick({0, 3});
    const auto some = [&](int64_t count) {
        Numbers x(count);
        for (float& each : x) each = number();
        return x;
    };
    const int64_t row = width + gap, value_row = value_width + gap;
    const Numbers query = some(all * steps * row), key = some(all * steps * row), value = some(all * steps * value_row);
    Numbers state = some(all * width * value_width), out(all * steps * value_width, HOLE);
    Exact sums(state.begin(), state.end()), want(out.size());
    for (int64_t t = 0; t < all * steps; ++t)
        for (int64_t e = 0; e < value_width; ++e)
            for (int64_t d = 0; d < width; ++d) {
                double& s = sums[(t / steps * width + d) * value_width + e];
                s += (double)key[t * row + d] * value[t * value_row + e];
                want[t * value_width + e] += query[t * row + d] * s;
            }
    const auto tensor = [&](const Numbers& x, int64_t wide) { return sl_tensor{x.data(), heads * steps * wide, steps * wide, wide}; };
    const sl_sequence sequence{batch, heads, steps, width, value_width, tensor(query, row), tensor(key, row), tensor(value, value_row), state.data(), out.data(),
                               (int32_t)pick({1, 3})};
    judge.result("recur", sl_recur(&sequence), 0);
    judge.same("recur", "out", out, want), judge.same("recur", "state", state, sums);
}

void check(int64_t number, Judge& judge) {
    Case c((uint64_t)number);
    about = "case " + std::to_string(number) + " (" + c.describe() + ")";
    const bool of_statistics = chance(60), of_average = !of_statistics || chance(70);
    const Pairs pairs(c, of_average, of_statistics);
    std::vector<std::pair<const char*, Forward>> kernels = {{"forward", sl_forward}};
    if (c.l.queries <= 17) kernels.emplace_back("decode", sl_decode);
    const auto stand = [&](bool few) { c.l.query_positions = few || c.scattered ? c.positions.data() : nullptr; };
    for (const auto& [name, run] : kernels) stand(run == sl_decode), check_forward(name, run, c, pairs, judge);
    stand(false);
    const bool one_sum = c.l.dense && c.dense_gradient[3] == 0;  // parts of the keys must not add to the same number
    check_backward(c, pairs, of_average, of_statistics, one_sum ? 1 : pick({1, 3}), false, judge);
    if (c.l.queries <= 17 && !c.scattered) check_backward(c, pairs, of_average, of_statistics, 1, true, judge);
    check_received(c, pairs, judge);
    stand(false);
    check_entmax(c, pairs, judge);
    check_fold(judge);
    check_recurrence(judge);

    c.query.all.back() = INF;  // whichever kernel meets it says so
    Output out(c.l);
    for (const auto& [name, run] : kernels) stand(run == sl_decode), judge.result(name, run(&c.l, &out.to), 1);
}

}  // namespace

// What the sanitizers call when they have found something.
extern "C" SL_PUBLIC void __asan_on_error() { std::fprintf(stderr, "%s\n", about.c_str()); }
extern "C" SL_PUBLIC void __ubsan_on_report() { __asan_on_error(); }

int main(int count, char** arguments) {
    const char *wanted = std::getenv("SOFTLOOKUP_INSTRUCTIONS"), *here = sl_instructions();
    if (wanted && std::strcmp(wanted, here) != 0) {
        std::printf("%s: not on this processor\n", wanted);
        return 0;
    }
    Judge judge;
    const int64_t first = count > 1 ? std::atol(arguments[1]) : 0, last = count > 1 ? first + 1 : CASES;
    for (int64_t number = first; number < last; ++number) check(number, judge);
    std::printf("%s: %ld cases, %ld comparisons, %ld failures\n", here, (long)(last - first), (long)judge.compared, (long)judge.failures);
    return judge.failures != 0;
}
