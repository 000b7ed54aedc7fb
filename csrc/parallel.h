// Tasks over threads. torch's own pool is used where it can be found (libgomp's GOMP_parallel): a second pool beside it would
// fight for the same cores, as idle threads of libgomp spin. Else plain threads.
#pragma once

#include <dlfcn.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

template <class Task>
void parallel(int64_t tasks, int threads, const Task& task) {
    struct Shared {
        std::atomic<int64_t> next{0};
        int64_t tasks;
        const Task* task;
    } shared;
    shared.tasks = tasks;
    shared.task = &task;
    auto work = [](void* pointer) {
        Shared& s = *(Shared*)pointer;
        for (int64_t t; (t = s.next++) < s.tasks;) (*s.task)(t);
    };
    if (threads > tasks) threads = (int)tasks;
    if (threads <= 1) return work(&shared);
    using Gomp = void (*)(void (*)(void*), void*, unsigned, unsigned);
    static const Gomp gomp = (Gomp)dlsym(RTLD_DEFAULT, "GOMP_parallel");
    if (gomp) return gomp(work, &shared, (unsigned)threads, 0);
    std::vector<std::thread> others;
    for (int n = 1; n < threads; ++n) others.emplace_back(work, &shared);
    work(&shared);
    for (std::thread& each : others) each.join();
}
