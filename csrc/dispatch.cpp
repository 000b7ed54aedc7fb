// The C interface: picks the instruction set, spreads panels over threads.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "parallel.h"
#include "softlookup.h"

#define KERNELS(isa)                                                                                                       \
    namespace isa {                                                                                                        \
    bool forward(const sl_lookup&, const sl_summary&, int64_t, int64_t, int64_t, int64_t, std::atomic<uint8_t>*);          \
    bool entmax(const sl_lookup&, const sl_outcome&, int64_t, int64_t, int64_t, int64_t, std::atomic<uint8_t>*);           \
    bool backward(const sl_lookup&, const sl_upstream&, const sl_gradients&, int64_t, int64_t, int64_t, int64_t, int64_t); \
    bool backward_of_few(const sl_lookup&, const sl_upstream&, const sl_gradients&, int64_t, int64_t);                     \
    bool received(const sl_lookup&, const float*, const float*, float*, int64_t, int64_t, int64_t, int64_t);               \
    bool decode(const sl_lookup&, const sl_part&, int64_t, int64_t, int64_t, int64_t);                                     \
    void finish(const sl_lookup&, const sl_summary&, int64_t, int64_t, sl_part*, int64_t);                                 \
    void fold(const sl_fold&, int64_t, int64_t);                                                                           \
    void recurrence(const sl_sequence&, int64_t, int64_t);                                                                 \
    }
KERNELS(base)
#ifdef SL_X86
KERNELS(avx2)
KERNELS(avx512)
#endif

namespace {

struct Kernels {
    const char* name;
    decltype(&base::forward) forward;
    decltype(&base::entmax) entmax;
    decltype(&base::backward) backward;
    decltype(&base::backward_of_few) backward_of_few;
    decltype(&base::received) received;
    decltype(&base::decode) decode;
    decltype(&base::finish) finish;
    decltype(&base::fold) fold;
    decltype(&base::recurrence) recurrence;
};

// The best that the processor has, or less where SOFTLOOKUP_INSTRUCTIONS names less (for tests and comparisons).
Kernels choose() {
    const char* wanted = std::getenv("SOFTLOOKUP_INSTRUCTIONS");
    const auto allowed = [&](const char* name) { return !wanted || std::strcmp(wanted, name) == 0; };
#ifdef SL_X86
    if (allowed("AVX-512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return {"AVX-512", avx512::forward, avx512::entmax, avx512::backward, avx512::backward_of_few, avx512::received, avx512::decode, avx512::finish, avx512::fold, avx512::recurrence};
    if (allowed("AVX2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return {"AVX2", avx2::forward, avx2::entmax, avx2::backward, avx2::backward_of_few, avx2::received, avx2::decode, avx2::finish, avx2::fold, avx2::recurrence};
#endif
    return {"portable", base::forward, base::entmax, base::backward, base::backward_of_few, base::received, base::decode, base::finish, base::fold, base::recurrence};
}

const Kernels& kernels() {
    static const Kernels chosen = choose();
    return chosen;
}

}  // namespace

namespace {

// Tasks over threads, with what became of them: 0, 1 where one met something that is not finite, 2 where memory ran out. A
// task gives whether all was finite; none begins after one that failed.
template <class Task>
int32_t outcome(int64_t tasks, int threads, const Task& task) {
    std::atomic<int32_t> result{0};
    parallel(tasks, threads, [&](int64_t t) {
        if (result) return;
        try {
            if (!task(t)) result = 1;
        } catch (...) {
            result = 2;
        }
    });
    return result;
}

}  // namespace

extern "C" const char* sl_instructions(void) { return kernels().name; }

namespace {

// Panel by panel, as forward(lookup, out, b, h, panel, panels, checked) has it.
template <class Out, class Forward>
int32_t by_panels(const sl_lookup& l, const Out& out, const Forward& forward) try {
    const int64_t panels = (l.queries + SL_QUERIES - 1) / SL_QUERIES, all = l.batch * l.heads * panels;
    std::vector<std::atomic<uint8_t>> checked(l.batch * l.kv_heads * ((l.keys + SL_KEYS - 1) / SL_KEYS));
    // Head by head, whose keys stay in cache from panel to panel; of each the last panel first: under a causal mask it is the
    // longest, and a long task at the end would leave threads idle.
    return outcome(all, l.threads, [&](int64_t task) {
        const int64_t panel = panels - 1 - task % panels, bh = task / panels;
        return forward(l, out, bh / l.heads, bh % l.heads, panel, panels, checked.data());
    });
} catch (...) {
    return 2;
}

}  // namespace

extern "C" int32_t sl_forward(const sl_lookup* lookup, const sl_summary* out) { return by_panels(*lookup, *out, kernels().forward); }

extern "C" int32_t sl_entmax(const sl_lookup* lookup, const sl_outcome* out) { return by_panels(*lookup, *out, kernels().entmax); }

extern "C" int32_t sl_backward(const sl_lookup* lookup, const sl_upstream* upstream, const sl_gradients* out) try {
    const sl_lookup& l = *lookup;
    const int64_t blocks = (l.keys + SL_KEYS - 1) / SL_KEYS, heads = l.batch * l.kv_heads;
    // Heads that share a dense bias add to the same gradient: then one task takes them all, one after another.
    const bool shared = out->dense && ((out->dense_batch == 0 && l.batch > 1) || (out->dense_head == 0 && l.heads > 1));
    const int64_t together = shared ? heads : 1;
    return outcome(heads / together * out->parts, l.threads, [&](int64_t task) {
        const int64_t part = task * together / heads, first = task * together % heads;
        const int64_t block0 = blocks * part / out->parts, block1 = blocks * (part + 1) / out->parts;
        for (int64_t bg = first; bg < first + together; ++bg)
            if (!kernels().backward(l, *upstream, *out, bg / l.kv_heads, bg % l.kv_heads, part, block0, block1)) return false;
        return true;
    });
} catch (...) {
    return 2;
}

extern "C" int32_t sl_backward_few(const sl_lookup* lookup, const sl_upstream* upstream, const sl_gradients* out) try {
    const sl_lookup& l = *lookup;
    return outcome(l.batch * l.kv_heads, l.threads,
                   [&](int64_t task) { return kernels().backward_of_few(l, *upstream, *out, task / l.kv_heads, task % l.kv_heads); });
} catch (...) {
    return 2;
}

extern "C" int32_t sl_received(const sl_lookup* lookup, const float* max_logit, const float* inverse_z, float* out) try {
    const sl_lookup& l = *lookup;
    const int64_t blocks = (l.keys + SL_KEYS - 1) / SL_KEYS, heads = l.batch * l.heads;
    const int64_t threads = std::max(1, l.threads);
    const int64_t parts = std::min<int64_t>(blocks, heads % threads ? 4 * threads : 1);
    return outcome(heads * parts, l.threads, [&](int64_t task) {
        const int64_t part = task / heads, bh = task % heads;
        return kernels().received(l, max_logit, inverse_z, out, bh / l.heads, bh % l.heads, blocks * part / parts, blocks * (part + 1) / parts);
    });
} catch (...) {
    return 2;
}

extern "C" void sl_fold_block(const sl_fold* fold) {
    constexpr int64_t ROWS = 16;
    parallel((fold->rows + ROWS - 1) / ROWS, fold->threads, [&](int64_t task) {
        kernels().fold(*fold, task * ROWS, fold->rows < (task + 1) * ROWS ? fold->rows : (task + 1) * ROWS);
    });
}

namespace {

// Memory for the moments and averages of some parts of one key-value head each, empty so far.
struct Parts {
    std::vector<float> numbers;
    std::vector<int64_t> best;
    std::vector<sl_part> all;

    void clear(const sl_lookup& l, int64_t count, int64_t b) {
        constexpr int64_t PLANES = 11;
        const int64_t rows = l.heads / l.kv_heads * l.queries, size = rows * (PLANES + (l.value_width + 15) / 16 * 16);
        numbers.assign(count * size, 0), best.assign(count * rows, -1), all.resize(count);
        for (int64_t p = 0; p < count; ++p) {
            float* from = numbers.data() + p * size;
            sl_fold& f = all[p].moments = {};
            for (float** plane : {&f.m, &f.z, &f.mean, &f.var, &f.c, &f.distance, &f.sink, &f.count, &f.flat_mean, &f.flat_var, &f.fade})
                *plane = from, from += rows;
            all[p].average = from;
            std::fill(f.m, f.m + rows, -std::numeric_limits<float>::infinity());
            f.best = best.data() + p * rows;
            f.rows = f.entry_rows = rows;
            f.query_position = l.query_positions;
            f.queries = l.queries;
            f.first_sink = l.first_sink + b;
            f.sinks = l.sinks;
            f.statistics = l.statistics;
        }
    }
};

}  // namespace

extern "C" int32_t sl_decode(const sl_lookup* lookup, const sl_summary* out) try {
    constexpr int64_t PART = 2048;
    const sl_lookup& l = *lookup;
    const int64_t parts = (l.keys + PART - 1) / PART, heads = l.batch * l.kv_heads;
    if (parts == 1)
        return outcome(heads, l.threads, [&](int64_t bg) {
            static thread_local Parts one;
            const int64_t b = bg / l.kv_heads, g = bg % l.kv_heads;
            one.clear(l, 1, b);
            if (!kernels().decode(l, one.all[0], b, g, 0, l.keys)) return false;
            kernels().finish(l, *out, b, g, one.all.data(), 1);
            return true;
        });
    std::vector<Parts> of(heads);
    for (int64_t bg = 0; bg < heads; ++bg) of[bg].clear(l, parts, bg / l.kv_heads);
    const int32_t result = outcome(heads * parts, l.threads, [&](int64_t t) {
        const int64_t part = t % parts, bg = t / parts, key1 = l.keys < (part + 1) * PART ? l.keys : (part + 1) * PART;
        return kernels().decode(l, of[bg].all[part], bg / l.kv_heads, bg % l.kv_heads, part * PART, key1);
    });
    if (result) return result;
    for (int64_t bg = 0; bg < heads; ++bg) kernels().finish(l, *out, bg / l.kv_heads, bg % l.kv_heads, of[bg].all.data(), parts);
    return 0;
} catch (...) {
    return 2;
}

extern "C" int32_t sl_recur(const sl_sequence* sequence) {
    const sl_sequence& s = *sequence;
    return outcome(s.batch * s.heads, s.threads, [&](int64_t bh) {
        kernels().recurrence(s, bh / s.heads, bh % s.heads);
        return true;
    });
}
