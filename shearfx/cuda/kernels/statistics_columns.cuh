// ||w||^2 and <w, BA> of columns by tensor cores: each warp multiplies the factor along 64 columns with them, and what
// comes out, [ranks, 64], with the columns' own factor. Neighbours in memory are neighbouring columns here, so a lane
// takes eight columns of four rows, and column 8 g + j is column g of tile j: which line is which is free.
#pragma once
#include "layout.cuh"
#include "matrix_units.cuh"
#include "tables.cuh"

template <int KIND, int FACTOR, int RANK_TILES>
__device__ inline void statistics_columns(const Matrix *table, const i64 *first, i64 jobs, float *partial) {
    constexpr int RANKS = 16 * RANK_TILES, WIDTH = 64, PITCH = 80;
    __shared__ Staged<FACTOR, RANKS, WIDTH, PITCH> staged;
    const Place place = place_of(first, jobs, blockIdx.x, table);
    const Matrix &job = table[place.job];
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    const i64 start = place.chunk * CHUNK, end = least(job.along, start + CHUNK);
    const i64 line = place.strip * COLUMN_STRIP + (threadIdx.x / 32) * 64;
    const i64 here = job.lines - line - 8 * g;  // columns that this lane has, if more than 0
    // eight columns beside each other (a head's) are read as if all columns were
    const i64 beside = here > 0 ? line_of(job, line + 8 * g) : 0;
    bool neighbours = true;
    for (int j = 1; j < 8 && j < here; ++j) neighbours &= line_of(job, line + 8 * g + j) == beside + j;
    const i64 size = KIND == FLOAT32 ? 4 : 2;
    const bool straight = neighbours && here >= 8 && aligned(job.weight, KIND, job.along_stride) && beside * size % 16 == 0;

    float square[8] = {}, inner[8][2] = {};
    for (i64 rank = 0; rank < job.rank; rank += RANKS) {
        float sum[RANK_TILES][8][4] = {};
        for (i64 base = start; base < end; base += WIDTH) {
            __syncthreads();
            staged.fill(job, rank, base, end);
            __syncthreads();
#pragma unroll 1
            for (int window = 0; window < WIDTH; window += 16) {
                float value[4][8] = {};
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const i64 at = base + window + 4 * q + i;
                    if (at >= end || here <= 0) continue;
                    if (neighbours) {
                        load_eight<KIND>(job.weight, at * job.along_stride + beside, here, straight, value[i]);
                        continue;
                    }
#pragma unroll
                    for (int j = 0; j < 8; ++j)
                        if (j < here)
                            value[i][j] = load(job.weight, KIND, at * job.along_stride + job.index[line + 8 * g + j]);
                }
                u32 b[8][2], low_b[8][2];
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    u16 h[4], l[4];
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        if (rank == 0) square[j] = fmaf(value[i][j], value[i][j], square[j]);
                        split_read<KIND>(value[i][j], h[i], l[i]);
                    }
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        b[j][i] = pair(h[2 * i], h[2 * i + 1]);
                        low_b[j][i] = pair(l[2 * i], l[2 * i + 1]);
                    }
                }
#pragma unroll
                for (int tile = 0; tile < RANK_TILES; ++tile) {
                    const int k = 16 * tile + g, from = window + 4 * q;
                    const Two upper = *reinterpret_cast<const Two *>(&staged.high[k][from]);
                    const Two under = *reinterpret_cast<const Two *>(&staged.high[k + 8][from]);
                    const Two low_upper = *reinterpret_cast<const Two *>(&staged.low[k][from]);
                    const Two low_under = *reinterpret_cast<const Two *>(&staged.low[k + 8][from]);
                    const u32 a[4] = {upper.word[0], under.word[0], upper.word[1], under.word[1]};
                    const u32 low_a[4] = {low_upper.word[0], low_under.word[0], low_upper.word[1], low_under.word[1]};
#pragma unroll
                    for (int j = 0; j < 8; ++j)
                        multiply_split<true, KIND != BFLOAT16>(sum[tile][j], a, low_a, b[j], low_b[j]);
                }
            }
        }
        // a lane holds ranks g and g + 8 of columns 8 (2q) + j and 8 (2q + 1) + j
#pragma unroll
        for (int j = 0; j < 8; ++j)
#pragma unroll
            for (int even = 0; even < 2; ++even) {
                const i64 mine = line + 8 * (2 * q + even) + j;
                if (mine >= job.lines) continue;
                const i64 own = line_of(job, mine) * job.lead_line;
#pragma unroll
                for (int tile = 0; tile < 2 * RANK_TILES; ++tile) {
                    const i64 k = rank + 8 * tile + g;
                    if (k < job.rank)
                        inner[j][even] = fmaf(sum[tile / 2][j][2 * (tile % 2) + even],
                                              load(job.lead, FACTOR, own + k * job.lead_rank),
                                              inner[j][even]);
                }
            }
    }
    float *to = partial + job.partial_at + place.chunk * job.lines * job.parts;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int apart = 1; apart < 4; apart *= 2) square[j] += __shfl_xor_sync(0xffffffffu, square[j], apart);
        if (q == 0 && j < here) to[(line + 8 * g + j) * job.parts] = square[j];
#pragma unroll
        for (int even = 0; even < 2; ++even) {
#pragma unroll
            for (int apart = 4; apart < 32; apart *= 2)
                inner[j][even] += __shfl_xor_sync(0xffffffffu, inner[j][even], apart);
            const i64 mine = line + 8 * (2 * q + even) + j;
            if (g == 0 && mine < job.lines) to[mine * job.parts + 1] = inner[j][even];
        }
    }
}
