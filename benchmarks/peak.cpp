// The most fused multiply-adds that this machine does in a second: independent chains in registers, no memory at all.
// Built and called by machine.py.   c++ -O3 -march=native -std=c++17 -shared -fPIC -pthread peak.cpp -o peak.so

#include <chrono>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int WIDTH = 64;  // bytes in a vector register
#elif defined(__AVX__)
constexpr int WIDTH = 32;
#else
constexpr int WIDTH = 16;
#endif

typedef float Vector __attribute__((vector_size(WIDTH)));

// Ports times latency are the chains in flight: ten on x86 (two times five), sixteen on large ARM cores (four times four).
// With the factor and the term they must fit in the registers: sixteen, or thirty-two.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int CHAINS = 24;
#else
constexpr int CHAINS = 12;
#endif

static float chains(long steps, float seed) {
    Vector x[CHAINS];
    for (int c = 0; c < CHAINS; ++c) x[c] = Vector{} + seed * c;
    Vector factor = Vector{} + 0.5f, term = Vector{} + seed;  // x = x / 2 + seed settles at 2 seed: never denormal
    for (long step = 0; step < steps; ++step) {
#pragma GCC unroll 24
        for (int c = 0; c < CHAINS; ++c) x[c] = x[c] * factor + term;
    }
    Vector sum{};
    for (Vector each : x) sum += each;
    return sum[0];
}

// Floating-point operations per second, in units of 1e9, of `threads` threads that each do `steps` steps.
extern "C" double fma_peak(int threads, long steps) {
    std::vector<float> results(threads);
    std::vector<std::thread> team;
    volatile float seed = 1;  // unknown to the compiler, which would leave out a chain that stays where it is
    auto start = std::chrono::steady_clock::now();
    for (int t = 1; t < threads; ++t) team.emplace_back([&, t] { results[t] = chains(steps, seed); });
    results[0] = chains(steps, seed);
    for (auto& each : team) each.join();
    std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    volatile float kept = 0;
    for (float each : results) kept = kept + each;
    constexpr int lanes = WIDTH / sizeof(float);
    return 2.0 * lanes * CHAINS * double(steps) * threads / seconds.count() / 1e9;
}
