// ||w||^2 and <w, BA> of rows by tensor cores: each warp multiplies 32 rows of the weight with the factor along them, and
// what comes out, [32, ranks], with the rows' own factor. A weight is read once, for every 64 ranks.
#pragma once
#include "layout.cuh"
#include "matrix_units.cuh"
#include "tables.cuh"

template <int KIND, int FACTOR, int RANK_TILES>
__device__ inline void statistics_rows(const Matrix *table, const i64 *first, i64 jobs, float *partial) {
    constexpr int RANKS = 16 * RANK_TILES, WIDTH = 128, PITCH = 160;
    __shared__ Staged<FACTOR, RANKS, WIDTH, PITCH> staged;
    const Place place = place_of(first, jobs, blockIdx.x, table);
    const Matrix &job = table[place.job];
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const i64 start = place.chunk * CHUNK, end = least(job.along, start + CHUNK);
    const i64 line = place.strip * ROW_STRIP + (threadIdx.x / 32) * 32;
    const bool straight = job.along_stride == 1 && aligned(job.weight, KIND, job.line_stride);

    i64 row[4];  // where rows g, g + 8, g + 16, g + 24 begin; -1: there is none
#pragma unroll
    for (int i = 0; i < 4; ++i)
        row[i] = line + g + 8 * i < job.lines ? line_of(job, line + g + 8 * i) * job.line_stride : -1;
    float square[4] = {}, inner[4] = {};

    for (i64 rank = 0; rank < job.rank; rank += RANKS) {
        float sum[2][2 * RANK_TILES][4] = {};
        for (i64 base = start; base < end; base += WIDTH) {
            __syncthreads();
            staged.fill(job, rank, base, end);
            __syncthreads();
#pragma unroll 1
            for (int window = 0; window < WIDTH; window += 32) {
                // in what order products are added is free: a lane takes eight neighbours, two steps of four
                const i64 at = base + window + 8 * q;
                u32 high[4][4], low[4][4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float value[8] = {};
                    if (row[i] >= 0 && at < end)
                        load_eight<KIND>(job.weight, row[i] + at, end - at, straight && at + 8 <= end, value);
                    u16 h[8], l[8];
#pragma unroll
                    for (int j = 0; j < 8; ++j) {
                        if (rank == 0) square[i] = fmaf(value[j], value[j], square[i]);
                        split_read<KIND>(value[j], h[j], l[j]);
                    }
#pragma unroll
                    for (int j = 0; j < 4; ++j) {
                        high[i][j] = pair(h[2 * j], h[2 * j + 1]);
                        low[i][j] = pair(l[2 * j], l[2 * j + 1]);
                    }
                }
#pragma unroll
                for (int tile = 0; tile < 2 * RANK_TILES; ++tile) {
                    const Four b = *reinterpret_cast<const Four *>(&staged.high[8 * tile + g][window + 8 * q]);
                    const Four low_b = *reinterpret_cast<const Four *>(&staged.low[8 * tile + g][window + 8 * q]);
#pragma unroll
                    for (int half = 0; half < 2; ++half)
#pragma unroll
                        for (int step = 0; step < 2; ++step) {
                            const int i = 2 * half, j = 2 * step;
                            const u32 a[4] = {high[i][j], high[i + 1][j], high[i][j + 1], high[i + 1][j + 1]};
                            const u32 low_a[4] = {low[i][j], low[i + 1][j], low[i][j + 1], low[i + 1][j + 1]};
                            const u32 b2[2] = {b.word[j], b.word[j + 1]}, low_b2[2] = {low_b.word[j], low_b.word[j + 1]};
                            multiply_split<KIND != BFLOAT16, true>(sum[half][tile], a, low_a, b2, low_b2);
                        }
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (row[i] < 0) continue;
            const i64 own = line_of(job, line + g + 8 * i) * job.lead_line;
#pragma unroll
            for (int tile = 0; tile < 2 * RANK_TILES; ++tile)
#pragma unroll
                for (int j = 0; j < 2; ++j) {
                    const i64 k = rank + 8 * tile + 2 * q + j;
                    if (k < job.rank)
                        inner[i] = fmaf(sum[i / 2][tile][2 * (i % 2) + j],
                                        load(job.lead, FACTOR, own + k * job.lead_rank), inner[i]);
                }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int apart = 1; apart < 4; apart *= 2) {
            square[i] += __shfl_xor_sync(0xffffffffu, square[i], apart);
            inner[i] += __shfl_xor_sync(0xffffffffu, inner[i], apart);
        }
        if (q == 0 && row[i] >= 0) {
            float *to = partial + job.partial_at + (place.chunk * job.lines + line + g + 8 * i) * job.parts;
            to[0] = square[i];
            to[1] = inner[i];
        }
    }
}
