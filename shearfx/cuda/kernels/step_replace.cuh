// The trial iterate of fading slices, or zero: x <- factor x + scaling BA, 128 by 64 numbers a block.
#pragma once
#include "layout.cuh"
#include "tables.cuh"

// "Fast" is the direction of neighbours in memory: along the lines where lines are rows, across them where they are
// columns. Both thin factors of BA come from shared memory, 32 ranks at a time.
template <int KIND, int FACTOR>
__device__ inline void step_replace(const Matrix *table, const i64 *first, i64 jobs, const i64 *slots,
                                    const float *factors, const int *fallen) {
    constexpr int RANKS = 32, WARPS = THREADS / 32;
    alignas(16) __shared__ float fast[RANKS][FAST_TILE];
    __shared__ float slow[RANKS][SLOW_TILE], scale[FAST_TILE];
    __shared__ i64 own[FAST_TILE];
    __shared__ int gone[FAST_TILE];
    const Place place = place_of(first, jobs, blockIdx.x, table);
    const Matrix &job = table[place.job];
    const bool rows = job.along_stride == 1;
    const int line_tile = rows ? SLOW_TILE : FAST_TILE, along_tile = rows ? FAST_TILE : SLOW_TILE;
    const i64 line = place.strip * line_tile, along = place.chunk * along_tile;
    const i64 lines = least(line_tile, job.lines - line), alongs = least(along_tile, job.along - along);
    for (int i = threadIdx.x; i < line_tile; i += THREADS) {
        const i64 slot = i < lines ? slots[job.slot_at + line + i] : 0;
        own[i] = i < lines ? line_of(job, line + i) : 0;
        scale[i] = i < lines ? factors[slot] : 0.0f;
        gone[i] = i < lines ? fallen[slot] : 1;
    }
    __syncthreads();
    bool live = false;
    for (int i = 0; i < lines; ++i) live |= !gone[i];

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float sum[SLOW_TILE / WARPS][4] = {};
    for (i64 rank = 0; live && rank < job.rank; rank += RANKS) {
        __syncthreads();
#pragma unroll 1
        for (int i = threadIdx.x; i < RANKS * line_tile; i += THREADS) {
            // neighbours in memory to neighbouring threads
            const int k = job.lead_rank == 1 ? i % RANKS : i / line_tile;
            const int l = job.lead_rank == 1 ? i / RANKS : i % line_tile;
            float value = 0.0f;
            if (l < lines && rank + k < job.rank)
                value = load(job.lead, FACTOR, own[l] * job.lead_line + (rank + k) * job.lead_rank);
            (rows ? slow[k] : fast[k])[l] = value;
        }
#pragma unroll 1
        for (int i = threadIdx.x; i < RANKS * along_tile; i += THREADS) {
            const int k = job.other_rank == 1 ? i % RANKS : i / along_tile;
            const int j = job.other_rank == 1 ? i / RANKS : i % along_tile;
            float value = 0.0f;
            if (j < alongs && rank + k < job.rank)
                value = load(job.other, FACTOR, (rank + k) * job.other_rank + (along + j) * job.other_along);
            (rows ? fast[k] : slow[k])[j] = value;
        }
        __syncthreads();
#pragma unroll 4
        for (int k = 0; k < RANKS; ++k) {
            float four[4];
            load_four<FLOAT32>(fast[k], 4 * lane, 4, true, four);
#pragma unroll
            for (int i = 0; i < SLOW_TILE / WARPS; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(slow[k][warp + WARPS * i], four[j], sum[i][j]);
        }
    }

    const i64 fast_count = rows ? alongs : lines, slow_count = rows ? lines : alongs, valid = fast_count - 4 * lane;
    const float scaling = float(job.scaling);
    const i64 bytes = KIND == FLOAT32 ? 4 : 2, four_bytes = 4 * bytes;
    if (valid <= 0) return;
    // columns beside each other are written together, others one by one
    bool neighbours = true;
    for (int j = 1; !rows && j < 4 && j < valid; ++j) neighbours &= own[4 * lane + j] == own[4 * lane] + j;
#pragma unroll 1
    for (int i = 0; i < SLOW_TILE / WARPS; ++i) {
        const int s = warp + WARPS * i;
        if (s >= slow_count) break;
        const i64 at = rows ? own[s] * job.line_stride + along + 4 * lane
                            : (along + s) * job.along_stride + own[4 * lane];
        const bool vector = neighbours && valid >= 4 && (reinterpret_cast<i64>(job.weight) + at * bytes) % four_bytes == 0;
        float value[4] = {};
        bool any = false;
#pragma unroll
        for (int j = 0; j < 4; ++j) any |= j < valid && !gone[rows ? s : 4 * lane + j];
        if (any && neighbours)
            load_four<KIND>(job.weight, at, valid, vector, value);
        else if (any)
            for (int j = 0; j < 4 && j < valid; ++j)
                value[j] = load(job.weight, KIND, at + own[4 * lane + j] - own[4 * lane]);
        float product[4];
#pragma unroll
        for (int n = 0; n < SLOW_TILE / WARPS; ++n)  // registers have no addresses: the one of this row, by comparison
#pragma unroll
            for (int j = 0; j < 4; ++j)
                if (n == i) product[j] = sum[n][j];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int l = rows ? s : 4 * lane + j;
            value[j] = j < valid && !gone[l] ? fmaf(scaling, product[j], scale[l] * value[j]) : 0.0f;
        }
        if (neighbours)
            store_four<KIND>(job.weight, at, valid, vector, value);
        else
            for (int j = 0; j < 4 && j < valid; ++j)
                store(job.weight, KIND, at + own[4 * lane + j] - own[4 * lane], value[j]);
    }
}
