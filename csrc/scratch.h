// Memory that a thread uses again and again: fresh pages would have to be mapped and cleared for every panel.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace SL_ISA {

// One arena per thread, in chunks that are kept, but for large ones. A Scratch hands out chunks and gives them back at its end;
// a copy hands out those after the original's.
struct Scratch {
    Scratch() = default;
    Scratch(const Scratch& other) : first(other.used), used(other.used) {}
    ~Scratch() {
        for (int n = first; n < used; ++n)
            if (chunks().list[n].size > LARGE) chunks().list[n].release();
    }

    float* floats(int64_t count) {
        Chunks& all = chunks();
        Chunk& chunk = all.list[used++];
        if (chunk.size < count) {
            chunk.release();
            const int64_t size = (count + 1023) / 1024 * 1024;
            chunk.data = (float*)std::aligned_alloc(64, size * sizeof(float));
            if (!chunk.data) throw std::bad_alloc();
            chunk.size = size;
        }
        return chunk.data;
    }

  private:
    struct Chunk {
        float* data = nullptr;
        int64_t size = 0;
        void release() {
            std::free(data);
            data = nullptr, size = 0;
        }
    };
    struct Chunks {
        Chunk list[32];
        ~Chunks() {
            for (Chunk& chunk : list) chunk.release();
        }
    };
    static Chunks& chunks() {
        static thread_local Chunks all;
        return all;
    }
    static constexpr int64_t LARGE = 1 << 20;
    int first = 0, used = 0;
};

}  // namespace SL_ISA
