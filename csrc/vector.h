// Vectors of floats by the compiler's vector extensions: one source for AVX-512, AVX2, NEON and the portable build, no
// intrinsics. Every kernel file is compiled once per instruction set, inside a namespace of its own.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "softlookup.h"

namespace SL_ISA {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float F __attribute__((vector_size(LANES * 4)));
typedef int32_t I __attribute__((vector_size(LANES * 4)));
typedef uint32_t U __attribute__((vector_size(LANES * 4)));

// From one row of a panel to the next: a cache line more than the queries, so that a column's numbers lie in different sets of
// the cache.
constexpr int64_t ROW = SL_QUERIES + 16;

constexpr float INF = std::numeric_limits<float>::infinity();

inline F load(const float* p) {
    F x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

inline I load(const int32_t* p) {
    I x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

inline void store(float* p, F x) { std::memcpy(p, &x, sizeof x); }
inline void store(int32_t* p, I x) { std::memcpy(p, &x, sizeof x); }

inline F splat(float x) { return x - F{}; }
inline I splat(int32_t x) { return x - I{}; }

inline I lane_numbers() {
    I x;
    for (int l = 0; l < LANES; ++l) x[l] = l;
    return x;
}

inline F max(F a, F b) { return a > b ? a : b; }
inline F abs(F x) { return (F)((I)x & splat(0x7fffffff)); }

inline F sqrt(F x) {
    float lanes[LANES];
    store(lanes, x);
    for (int l = 0; l < LANES; ++l) lanes[l] = __builtin_sqrtf(lanes[l]);
    return load(lanes);
}

// Lane l of the result is lane which[l] of a and b together.
inline F shuffle(F a, F b, I which) {
#ifdef __clang__
    F x;
    for (int l = 0; l < LANES; ++l) x[l] = which[l] < LANES ? a[which[l]] : b[which[l] - LANES];
    return x;
#else
    return __builtin_shuffle(a, b, which);
#endif
}

// LANES rows of LANES numbers, transposed. Each round puts row i and row i + LANES / 2 together like the two halves of a deck
// of cards; after log2(LANES) rounds columns have become rows.
inline void transpose(F* rows) {
    I low, high;
    for (int l = 0; l < LANES; ++l) low[l] = l / 2 + l % 2 * LANES, high[l] = low[l] + LANES / 2;
#pragma GCC unroll 8
    for (int round = 1; round < LANES; round *= 2) {
        F next[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES / 2; ++i) {
            next[2 * i] = shuffle(rows[i], rows[i + LANES / 2], low);
            next[2 * i + 1] = shuffle(rows[i], rows[i + LANES / 2], high);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) rows[i] = next[i];
    }
}

// The sum of all lanes.
inline float total(F x) {
    float lanes[LANES];
    store(lanes, x);
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    return lanes[0];
}

inline bool any(I x) {
    int32_t some = 0;
    for (int l = 0; l < LANES; ++l) some |= x[l];
    return some;
}

// e^t for t <= 88; exactly 0 below -87 (hidden scores are -inf). n is t log2(e) rounded by adding a number whose
// unit in the last place is 1; 2^f for the rest by a polynomial, with a relative error of 1e-7 (fitted), and n is added to
// its exponent's bits.
inline F exp(F t) {
    const float log2e = 1.44269504f, round = 12582912.f;
    F shifted = t * log2e + round;
    F f = t * log2e - (shifted - round);
    F p = f * 1.326472721e-3f + 9.671512812e-3f;
    p = p * f + 5.550733745e-2f;
    p = p * f + 2.402224208e-1f;
    p = p * f + 6.931469776e-1f;
    p = p * f + 1.0f;
    F power = (F)((U)p + ((U)shifted << 23));
    return t < splat(-87.f) ? F{} : power;
}

// The same, and NaN for NaN of any payload: scores that something else computed may be anything.
inline F exp_or_nan(F t) { return t == t ? exp(t) : t; }

// tanh: an odd polynomial near 0 (fitted, relative error 1e-8 before rounding), else by the exponential.
inline F tanh(F x) {
    F y = abs(x), z = x * x;
    F p = z * -5.515122305e-3f + 2.046938141e-2f;
    p = p * z + -5.368801098e-2f;
    p = p * z + 1.333083020e-1f;
    p = p * z + -3.333325984e-1f;
    F near = x + x * z * p;
    F e = exp(y * -2.f), far = (1.f - e) / (1.f + e);
    return y < splat(0.65f) ? near : (x < F{} ? -far : far);
}

// log(1 + x) for x >= 0: 1 + x = 2^n (1 + f), and log(1 + f) = 2 artanh(f / (2 + f)) by its series.
inline F log1p(F x) {
    F y = x + 1.f;
    I n = (I)((U)y - 0x3f3504f3u) >> 23;  // so that 1 + f lies between the square roots of 1/2 and 2
    F f = n == I{} ? x : (F)((U)y - ((U)n << 23)) - 1.f;
    F s = f / (f + 2.f), z = s * s;
    F p = ((z * (1.f / 9) + 1.f / 7) * z + 1.f / 5) * z + 1.f / 3;
    return __builtin_convertvector(n, F) * 0.69314718f + 2.f * (s + s * z * p);
}

}  // namespace SL_ISA
