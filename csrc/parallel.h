// Tasks over threads. torch's own pool is used where it can be found (libgomp's GOMP_parallel): a second pool beside it would
// fight for the same cores, as idle threads of libgomp spin. Else plain threads.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

template <class Task>
void parallel(int64_t tasks, int threads, const Task& task) {
    if (threads > tasks) threads = (int)tasks;
    struct Shared {
        std::atomic<int64_t> next{0};
        int64_t tasks, shares;
        const Task* task;
    } shared;
    shared.tasks = tasks;
    shared.shares = 4 * threads;
    shared.task = &task;
    // Neighbours go to one thread, as what they write lies side by side in memory: many at first, at the end one by one, so
    // that no thread waits for long.
    auto work = [](void* pointer) {
        Shared& s = *(Shared*)pointer;
        for (int64_t t = s.next; t < s.tasks;) {
            const int64_t end = t + std::max<int64_t>(1, (s.tasks - t) / s.shares);
            if (!s.next.compare_exchange_weak(t, end)) continue;
            for (; t < end; ++t) (*s.task)(t);
            t = s.next;
        }
    };
    if (threads <= 1) return work(&shared);
    using Gomp = void (*)(void (*)(void*), void*, unsigned, unsigned);
    static const Gomp gomp = (Gomp)dlsym(RTLD_DEFAULT, "GOMP_parallel");
    if (gomp) return gomp(work, &shared, (unsigned)threads, 0);
    std::vector<std::thread> others;
    for (int n = 1; n < threads; ++n) others.emplace_back(work, &shared);
    work(&shared);
    for (std::thread& each : others) each.join();
}
