// The C interface: picks the instruction set, spreads panels over threads.
#include <atomic>

#include "parallel.h"
#include "softlookup.h"

#define KERNELS(isa)                                                                                                       \
    namespace isa {                                                                                                        \
    bool forward(const sl_lookup&, const sl_summary&, int64_t, int64_t, int64_t, int64_t, std::atomic<uint8_t>*);          \
    bool backward(const sl_lookup&, const sl_upstream&, const sl_gradients&, int64_t, int64_t, int64_t, int64_t, int64_t); \
    void fold(const sl_fold&, int64_t, int64_t);                                                                           \
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
    decltype(&base::backward) backward;
    decltype(&base::fold) fold;
};

Kernels choose() {
#ifdef SL_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return {"AVX-512", avx512::forward, avx512::backward, avx512::fold};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {"AVX2", avx2::forward, avx2::backward, avx2::fold};
#endif
    return {"portable", base::forward, base::backward, base::fold};
}

const Kernels& kernels() {
    static const Kernels chosen = choose();
    return chosen;
}

}  // namespace

extern "C" const char* sl_instructions(void) { return kernels().name; }

extern "C" int32_t sl_forward(const sl_lookup* lookup, const sl_summary* out) {
    const sl_lookup& l = *lookup;
    const int64_t panels = (l.queries + SL_QUERIES - 1) / SL_QUERIES, all = l.batch * l.heads * panels;
    std::atomic<bool> finite{true};
    std::vector<std::atomic<uint8_t>> checked(l.batch * l.kv_heads * ((l.keys + SL_KEYS - 1) / SL_KEYS));
    // The last panels first: under a causal mask they are the longest, and a long task at the end would leave threads idle.
    parallel(all, l.threads, [&](int64_t task) {
        const int64_t panel = panels - 1 - task / (l.batch * l.heads), bh = task % (l.batch * l.heads);
        if (finite && !kernels().forward(l, *out, bh / l.heads, bh % l.heads, panel, panels, checked.data())) finite = false;
    });
    return finite ? 0 : 1;
}

extern "C" int32_t sl_backward(const sl_lookup* lookup, const sl_upstream* upstream, const sl_gradients* out) {
    const sl_lookup& l = *lookup;
    const int64_t blocks = (l.keys + SL_KEYS - 1) / SL_KEYS, heads = l.batch * l.kv_heads;
    std::atomic<bool> finite{true};
    parallel(heads * out->parts, l.threads, [&](int64_t task) {
        const int64_t part = task / heads, bg = task % heads;
        const int64_t block0 = blocks * part / out->parts, block1 = blocks * (part + 1) / out->parts;
        if (finite && !kernels().backward(l, *upstream, *out, bg / l.kv_heads, bg % l.kv_heads, part, block0, block1)) finite = false;
    });
    return finite ? 0 : 1;
}

extern "C" void sl_fold_block(const sl_fold* fold) {
    constexpr int64_t ROWS = 16;
    parallel((fold->rows + ROWS - 1) / ROWS, fold->threads, [&](int64_t task) {
        kernels().fold(*fold, task * ROWS, fold->rows < (task + 1) * ROWS ? fold->rows : (task + 1) * ROWS);
    });
}
