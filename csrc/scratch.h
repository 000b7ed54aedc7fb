// Memory that a thread uses again and again: fresh pages would have to be mapped and cleared for every panel.
#pragma once

#include <cstdint>
#include <cstdlib>

struct Scratch {
    // One arena per thread, in chunks that are kept; a Scratch hands out from its start and gives all back at its end.
    float* floats(int64_t count) {
        Chunks& all = chunks();
        if (used == all.count) all.grow();
        Chunk& chunk = all.list[used++];
        if (chunk.size < count) {
            std::free(chunk.data);
            chunk.size = (count + 1023) / 1024 * 1024;
            chunk.data = (float*)std::aligned_alloc(64, chunk.size * sizeof(float));
        }
        return chunk.data;
    }

  private:
    struct Chunk {
        float* data = nullptr;
        int64_t size = 0;
    };
    struct Chunks {
        Chunk list[32];
        int count = 0;
        void grow() { ++count; }
        ~Chunks() {
            for (Chunk& chunk : list) std::free(chunk.data);
        }
    };
    static Chunks& chunks() {
        static thread_local Chunks all;
        return all;
    }
    int used = 0;
};
