// What follows the pass over the weights: Gram matrices of the factors that lie along, and sums over chunks.
#pragma once
#include "layout.cuh"
#include "tables.cuh"

__device__ inline i64 gram_tiles(const Matrix &job) { return ceil_div(job.rank, GRAM_TILE); }

// The product of the factor along with itself, [rank, rank], a chunk and 16 x 16 entries a block.
__device__ inline void gram(const Matrix *table, const i64 *first, i64 jobs, float *partial) {
    constexpr int WIDTH = 64;
    __shared__ float left[GRAM_TILE][WIDTH + 1], right[GRAM_TILE][WIDTH + 1];
    const i64 number = find_job(first, jobs, blockIdx.x), within = blockIdx.x - first[number];
    const Matrix &job = table[number];
    const i64 tiles = gram_tiles(job), tile = within % (tiles * tiles), chunk = within / (tiles * tiles);
    const i64 above = tile / tiles * GRAM_TILE, beside = tile % tiles * GRAM_TILE;
    const i64 start = chunk * CHUNK, end = least(job.along, start + CHUNK);
    const int i = threadIdx.x / GRAM_TILE, j = threadIdx.x % GRAM_TILE;
    float sum = 0.0f;
    for (i64 base = start; base < end; base += WIDTH) {
        __syncthreads();
#pragma unroll 1
        for (int n = threadIdx.x; n < GRAM_TILE * WIDTH; n += THREADS) {
            const int k = job.other_along == 1 ? n / WIDTH : n % GRAM_TILE;
            const int at = job.other_along == 1 ? n % WIDTH : n / GRAM_TILE;
            const i64 here = (base + at) * job.other_along;
            const int kind = int(job.other_kind);
            const bool in = base + at < end;
            left[k][at] = in && above + k < job.rank ? load(job.other, kind, (above + k) * job.other_rank + here) : 0.0f;
            right[k][at] = in && beside + k < job.rank ? load(job.other, kind, (beside + k) * job.other_rank + here) : 0.0f;
        }
        __syncthreads();
#pragma unroll 8
        for (int at = 0; at < WIDTH; ++at) sum = fmaf(left[i][at], right[j][at], sum);
    }
    if (above + i < job.rank && beside + j < job.rank)
        partial[job.gram_at + (chunk * job.rank + above + i) * job.rank + beside + j] = sum;
}

// Its chunks added up in their order, into the first; a thread an entry.
__device__ inline void gram_finish(const Matrix *table, const i64 *first, i64 jobs, float *partial) {
    const i64 number = find_job(first, jobs, blockIdx.x);
    const Matrix &job = table[number];
    const i64 entry = (blockIdx.x - first[number]) * THREADS + threadIdx.x, entries = job.rank * job.rank;
    if (entry >= entries) return;
    float sum = 0.0f;
    for (i64 chunk = 0; chunk < job.gram_chunks; ++chunk) sum += partial[job.gram_at + chunk * entries + entry];
    partial[job.gram_at + entry] = sum;
}

// Chunks added up, and ||BA||^2 as the quadratic form of a line's factor: eight threads a line.
//   found[0, lines) = ||w||^2, found[lines, 2 lines) = <w, d>, found[2 lines, 3 lines) = ||d||^2
__device__ inline void finish(const Matrix *table, const i64 *first, i64 jobs, const float *partial, const float *grams,
                              float *found, i64 lines) {
    const i64 number = find_job(first, jobs, blockIdx.x);
    const Matrix &job = table[number];
    const i64 line = (blockIdx.x - first[number]) * FINISH_STRIP + threadIdx.x / 8;
    const int part = threadIdx.x % 8;
    constexpr int TOGETHER = 4;  // entries of the row's product with the Gram matrix that a thread makes at a time
    float sum[3] = {};
    if (line < job.lines) {
#pragma unroll 1
        for (i64 chunk = part; chunk < job.chunks; chunk += 8)
            for (int i = 0; i < job.parts; ++i)
                sum[i] += partial[job.partial_at + (chunk * job.lines + line) * job.parts + i];
        if (job.gram_at >= 0) {
            const i64 own = line_of(job, line) * job.lead_line;
            const int kind = int(job.lead_kind);
            // the Gram matrix is symmetric, to the bit: neighbouring threads read neighbours of one of its rows
#pragma unroll 1
            for (i64 k = part; k < job.rank; k += 8 * TOGETHER) {
                float row[TOGETHER] = {};
#pragma unroll 1
                for (i64 j = 0; j < job.rank; ++j) {
                    const float lead = load(job.lead, kind, own + j * job.lead_rank);
                    const float *gram = grams + job.gram_at + j * job.rank + k;
#pragma unroll
                    for (int i = 0; i < TOGETHER; ++i)
                        if (k + 8 * i < job.rank) row[i] = fmaf(gram[8 * i], lead, row[i]);
                }
#pragma unroll
                for (int i = 0; i < TOGETHER; ++i)
                    if (k + 8 * i < job.rank)
                        sum[2] = fmaf(row[i], load(job.lead, kind, own + (k + 8 * i) * job.lead_rank), sum[2]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 3; ++i)
#pragma unroll
        for (int apart = 1; apart < 8; apart *= 2) sum[i] += __shfl_xor_sync(0xffffffffu, sum[i], apart);
    if (part == 0 && line < job.lines) {
        const float scaling = float(job.scaling);
        found[job.line_at + line] = sum[0];
        found[lines + job.line_at + line] = sum[1] * scaling;
        found[2 * lines + job.line_at + line] = fmaxf(sum[2], 0.0f) * scaling * scaling;
    }
}
