// Problems drawn from fixed seeds. A buffer ends where its tensor ends, so that AddressSanitizer sees what is read beyond it, and
// what lies between rows is NaN, so that reading that shows too.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "../softlookup.h"

using Numbers = std::vector<float>;
constexpr float INF = std::numeric_limits<float>::infinity(), HOLE = std::numeric_limits<float>::quiet_NaN();

inline std::mt19937_64 source;
inline int64_t below(int64_t n) { return (int64_t)(source() % (uint64_t)n); }
inline int64_t pick(std::initializer_list<int64_t> from) { return from.begin()[below((int64_t)from.size())]; }
inline bool chance(int64_t percent) { return below(100) < percent; }
inline float number() { return (float)(below(2001) + below(2001) + below(2001) - 3000) / 1000; }  // mean 0, variance 1

inline Numbers numbers(int64_t count) {
    Numbers x(count);
    for (float& each : x) each = number();
    return x;
}

// (B, H, N, W): contiguous, with holes, heads side by side in a row, or alike in every batch entry.
struct Tensor {
    Numbers all;
    int64_t batch = 0, head = 0, row = 0;

    Tensor() = default;
    Tensor(int64_t b, int64_t h, int64_t n, int64_t w) {
        const int64_t kind = below(4), hole = kind == 1 ? pick({1, 3, 16}) : 0;
        row = kind == 2 ? h * w : w + hole;
        head = kind == 2 ? w : n * row + hole;
        batch = kind == 3 ? 0 : kind == 2 ? n * row : h * head + hole;
        all.assign((b - 1) * batch + (h - 1) * head + (n - 1) * row + w, HOLE);
        for (int64_t x = 0; x < b * h * n * w; ++x) all[x / w / n / h * batch + x / w / n % h * head + x / w % n * row + x % w] = number();
    }
    const float* at(int64_t b, int64_t h, int64_t n) const { return all.data() + b * batch + h * head + n * row; }
    sl_tensor view() const { return {all.data(), batch, head, row}; }
};

// What the kernels take: a lookup, its mask both as bytes and as lists of blocks, and gradients of its average.
struct Case {
    sl_lookup l{};
    Tensor query, key, value, key_bias, dense, upstream;
    Numbers relative, additive, coolness;
    int64_t dense_gradient[4] = {}, dense_gradients = 0;  // strides of what is wanted of the dense bias, and its size
    std::vector<int64_t> first_sink, positions, start;
    std::vector<uint8_t> seen, bits;
    std::vector<int32_t> pattern, block, bits_of;
    const char* mask = "no";
    bool scattered;  // whether queries stand at any positions

    explicit Case(uint64_t seed) {
        source.seed(seed);
        draw_shape();
        query = Tensor(l.batch, l.heads, l.queries, l.width), key = Tensor(l.batch, l.kv_heads, l.keys, l.width);
        value = Tensor(l.batch, l.kv_heads, l.keys, l.value_width), upstream = Tensor(l.batch, l.heads, l.queries, l.value_width);
        l.query = query.view(), l.key = key.view(), l.value = value.view();
        l.key_position = pick({0, 7}), l.query_position = pick({0, l.key_position + 2, 60, l.key_position + 94, l.keys, 1000});
        scattered = chance(25);
        for (int64_t i = 0; i < l.queries; ++i) positions.push_back(scattered ? (int64_t)(source() % 1000) : l.query_position + i);
        positions.resize((l.queries + SL_QUERIES - 1) / SL_QUERIES * SL_QUERIES);
        for (int64_t b = 0; b < l.batch; ++b) first_sink.push_back(pick({0, 3, l.key_position + 94}));
        positions.shrink_to_fit(), first_sink.shrink_to_fit();
        l.first_sink = first_sink.data(), l.sinks = pick({0, 1, 4});
        l.statistics = chance(75), l.threads = (int32_t)pick({1, 3});
        draw_score();
        draw_biases();
        draw_mask();
        list_blocks();
    }
    Case(const Case&) = delete;

    bool sees(int64_t b, int64_t h, int64_t i, int64_t j) const { return seen[(pattern[b * l.heads + h] * l.queries + i) * l.keys + j]; }

    std::string describe() const {
        char line[400];
        std::snprintf(line, sizeof line, "B %ld, H %ld/%ld, L %ld, S %ld, E %ld, Ev %ld, %s mask%s%s%s%s%s%s%s%s%s, statistics %d, threads %d",
                      (long)l.batch, (long)l.heads, (long)l.kv_heads, (long)l.queries, (long)l.keys, (long)l.width, (long)l.value_width, mask, scattered ? ", scattered" : "",
                      l.additive ? ", additive" : "", l.key_bias ? ", key bias" : "", l.map == SL_SOFTCAP ? ", soft-cap" : "",
                      l.map == SL_LORENTZ ? ", Lorentz" : "", l.relative ? ", relative" : "", l.dense ? ", dense" : "",
                      l.inverse_temperatures ? ", temperatures" : "", l.dropout.on ? ", dropout" : "", l.statistics, l.threads);
        return line;
    }

  private:
    void draw_shape() {
        l.queries = pick({1, 5, 16, 17, 95, 96, 97, 191, 192, 193, 400}), l.keys = pick({1, 5, 16, 17, 95, 96, 97, 191, 192, 193, 400});
        if (chance(10)) l.queries = pick({1, 2, 5}), l.keys = pick({2048, 2500, 4200});  // more than one of sl_decode's parts
        l.width = pick({1, 3, 8, 16, 17, 64, 100, 128}), l.value_width = pick({1, 3, 8, 16, 17, 64, 100, 128});
        const int64_t size = l.queries * l.keys * (l.width + l.value_width);  // so that all cases take seconds
        l.batch = size < 4000000 ? pick({1, 2}) : 1, l.kv_heads = size < 500000 ? pick({1, 2}) : 1;
        l.heads = l.kv_heads * (size < 1000000 ? pick({1, 2, 3}) : size < 2000000 ? pick({1, 2}) : 1);
    }

    void draw_score() {
        l.scale = 1 / std::sqrt((float)l.width), l.inverse_temperature = chance(25) ? 1.5f : 1.f;
        if (chance(25)) l.map = SL_SOFTCAP, l.softcap = 2;
        if (chance(10)) l.map = SL_LORENTZ, l.scale /= 10;
        if (chance(20) && l.queries * l.keys * l.width < 1000000) {
            l.map = SL_IDENTITY, l.scale = 1;
            l.additive_head = pick({0, l.width, l.width + 3});
            additive = numbers((l.heads - 1) * l.additive_head + l.width);
            for (float& each : additive) each *= 2 / std::sqrt((float)l.width);
            l.additive = additive.data();
            std::fill_n(query.all.begin(), l.width, (float)pick({1, 7, 12}));  // the kernels go other ways where terms are large
        }
        if (!l.additive && (l.map == SL_LORENTZ || chance(30))) {
            key_bias = Tensor(l.batch, l.heads, 1, l.keys);
            // Products far from -1, where the slope of the distance has no bound: well below, or above, where it is taken as 0.
            const float side = l.map != SL_LORENTZ ? 0.f : chance(70) ? -5.f : 4.f;
            for (float& each : key_bias.all) each += side;
            l.key_bias = key_bias.all.data(), l.key_bias_batch = key_bias.batch, l.key_bias_head = key_bias.head;
        }
        if (chance(20)) {
            coolness = numbers(l.batch * l.heads * l.queries);
            for (float& each : coolness) each = 1 + each / 4;
            l.inverse_temperatures = coolness.data();
        }
        if (chance(20)) l.dropout = {1, (uint32_t)1 << 30, (uint32_t)source(), 4.f / 3};
    }

    void draw_biases() {
        if (chance(30)) {
            l.relative_head = l.queries + l.keys - 1 + pick({0, 3});
            relative = numbers((l.heads - 1) * l.relative_head + l.queries + l.keys - 1);
            l.relative = relative.data();
        }
        if (chance(30)) {
            const int64_t kind = below(3);  // as it is, transposed, one row for all queries
            dense = kind == 1 ? Tensor(l.batch, l.heads, l.keys, l.queries) : Tensor(l.batch, l.heads, kind ? 1 : l.queries, l.keys);
            l.dense = dense.all.data(), l.dense_batch = dense.batch, l.dense_head = dense.head;
            l.dense_row = kind == 1 ? 1 : kind ? 0 : dense.row, l.dense_column = kind == 1 ? dense.row : 1;
            const int64_t sizes[4] = {l.batch, l.heads, l.queries, l.keys};
            dense_gradients = 1;
            for (int n = 3; n >= 0; --n)
                if (chance(75)) dense_gradient[n] = dense_gradients, dense_gradients *= sizes[n];
        }
    }

    void draw_mask() {
        const int64_t kind = below(4);  // all, causal, near the diagonal, at random with a row that sees nothing
        mask = kind == 0 ? "no" : kind == 1 ? "causal" : kind == 2 ? "window" : "random";
        const int64_t by_batch = kind == 3 && chance(50), by_head = kind == 3 && chance(50), heads = by_head ? l.heads : 1;
        const int64_t patterns = (by_batch ? l.batch : 1) * heads, hidden = below(l.queries);
        for (int64_t b = 0; b < l.batch; ++b)
            for (int64_t h = 0; h < l.heads; ++h) pattern.push_back((int32_t)(by_batch * b * heads + by_head * h));
        pattern.shrink_to_fit();
        seen.resize(patterns * l.queries * l.keys);
        for (int64_t x = 0; x < (int64_t)seen.size(); ++x) {
            const int64_t i = x / l.keys % l.queries, j = x % l.keys, apart = l.query_position + i - l.key_position - j;
            seen[x] = kind == 0 || (kind == 1 ? apart >= 0 : kind == 2 ? std::abs(apart) < 60 : i != hidden && chance(60));
        }
        if (kind == 0) return;
        l.seen = seen.data(), l.seen_row = l.keys;
        l.seen_head = by_head * l.queries * l.keys, l.seen_batch = by_batch * heads * l.queries * l.keys;
    }

    // As engines/block_lists.py: blocks that are hidden are left out, those that are visible have no bits.
    void list_blocks() {
        const int64_t patterns = (int64_t)seen.size() / (l.queries * l.keys);
        start.push_back(0);
        for (int64_t p = 0; p < patterns; ++p)
            for (int64_t i = 0; i < l.queries; i += SL_QUERIES) {
                for (int64_t j = 0; j < l.keys; j += SL_KEYS) list_block(seen.data() + p * l.queries * l.keys, i, j);
                start.push_back((int64_t)block.size());
            }
        start.shrink_to_fit(), block.shrink_to_fit(), bits_of.shrink_to_fit(), bits.shrink_to_fit();
        l.blocks.pattern = pattern.data(), l.blocks.start = start.data(), l.blocks.block = block.data();
        l.blocks.bits_of = bits_of.data(), l.blocks.bits = bits.data();
    }

    void list_block(const uint8_t* from, int64_t i0, int64_t j0) {
        constexpr int64_t SIZE = SL_KEYS * SL_QUERIES / 8;
        const int64_t i1 = std::min(i0 + SL_QUERIES, l.queries), j1 = std::min(j0 + SL_KEYS, l.keys);
        std::vector<uint8_t> here(SIZE);
        int64_t pairs = 0;
        for (int64_t i = i0; i < i1; ++i)
            for (int64_t j = j0; j < j1; ++j) {
                pairs += from[i * l.keys + j];
                here[((j - j0) * SL_QUERIES + i - i0) / 8] |= (uint8_t)(from[i * l.keys + j] << (i - i0) % 8);
            }
        if (!pairs) return;
        const bool full = pairs == (i1 - i0) * (j1 - j0);
        block.push_back((int32_t)(j0 / SL_KEYS)), bits_of.push_back(full ? -1 : (int32_t)((int64_t)bits.size() / SIZE));
        if (!full) bits.insert(bits.end(), here.begin(), here.end());
    }
};
