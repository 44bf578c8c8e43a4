// The sums where no product is: of a weight alone, or of a weight and a matrix of its shape (a gradient).
#pragma once
#include "layout.cuh"
#include "tables.cuh"

struct Sums {
    float square, inner, delta;
};

__device__ inline void add(Sums &sums, float weight, float other) {
    sums.square = fmaf(weight, weight, sums.square);
    sums.inner = fmaf(weight, other, sums.inner);
    sums.delta = fmaf(other, other, sums.delta);
}

__device__ inline void put(const Matrix &job, float *partial, i64 chunk, i64 line, const Sums &sums) {
    float *to = partial + job.partial_at + (chunk * job.lines + line) * job.parts;
    to[0] = sums.square;
    to[1] = sums.inner;
    if (job.parts == 3) to[2] = sums.delta;
}

// A weight and what stands beside it: eight neighbours of each.
template <int KIND, int FACTOR>
__device__ inline void load_both(const Matrix &job, i64 at, i64 beside, i64 valid, bool straight, bool straight_other,
                                 float (&weight)[8], float (&other)[8]) {
    load_eight<KIND>(job.weight, at, valid, straight && valid >= 8, weight);
    if (job.other) load_eight<FACTOR>(job.other, beside, valid, straight_other && valid >= 8, other);
}

// Rows: a warp takes one row after the other, a lane eight neighbours.
template <int KIND, int FACTOR>
__device__ inline void sums_of_rows(const Matrix *table, const i64 *first, i64 jobs, float *partial) {
    const Place place = place_of(first, jobs, blockIdx.x, table);
    const Matrix &job = table[place.job];
    const int lane = threadIdx.x % 32;
    const i64 start = place.chunk * CHUNK, end = least(job.along, start + CHUNK);
    const bool straight = aligned(job.weight, KIND, job.line_stride);
    const bool straight_other = aligned(job.other, FACTOR, job.other_rank);
    for (int i = 0; i < DENSE_ROWS / 8; ++i) {
        const i64 line = place.strip * DENSE_ROWS + i * 8 + threadIdx.x / 32;
        if (line >= job.lines) continue;  // a whole warp
        const i64 own = line_of(job, line);
        Sums sums = {};
        for (i64 at = start + 8 * lane; at < end; at += 256) {
            float weight[8], other[8] = {};
            load_both<KIND, FACTOR>(job, own * job.line_stride + at, own * job.other_rank + at, end - at, straight,
                            straight_other, weight, other);
#pragma unroll
            for (int j = 0; j < 8; ++j) add(sums, weight[j], other[j]);
        }
#pragma unroll
        for (int apart = 16; apart; apart /= 2) {
            sums.square += __shfl_xor_sync(0xffffffffu, sums.square, apart);
            sums.inner += __shfl_xor_sync(0xffffffffu, sums.inner, apart);
            sums.delta += __shfl_xor_sync(0xffffffffu, sums.delta, apart);
        }
        if (lane == 0) put(job, partial, place.chunk, line, sums);
    }
}

// Columns: a lane takes eight neighbouring columns, the warps take turns at the rows and are added up in their order.
template <int KIND, int FACTOR>
__device__ inline void sums_of_columns(const Matrix *table, const i64 *first, i64 jobs, float *partial) {
    const Place place = place_of(first, jobs, blockIdx.x, table);
    const Matrix &job = table[place.job];
    __shared__ Sums shared[8][DENSE_COLUMNS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const i64 start = place.chunk * CHUNK, end = least(job.along, start + CHUNK);
    const i64 line = place.strip * DENSE_COLUMNS, here = job.lines - line - 8 * lane;
    const bool straight = aligned(job.weight, KIND, job.along_stride);
    const bool straight_other = aligned(job.other, FACTOR, job.other_along);
    Sums sums[8] = {};
    for (i64 at = start + warp; here > 0 && at < end; at += 8) {
        float weight[8] = {}, other[8] = {};
        if (!job.index) {
            load_both<KIND, FACTOR>(job, at * job.along_stride + line + 8 * lane, at * job.other_along + line + 8 * lane, here,
                            straight, straight_other, weight, other);
        } else {
            for (int j = 0; j < 8 && j < here; ++j) {
                const i64 own = job.index[line + 8 * lane + j];
                weight[j] = load(job.weight, KIND, at * job.along_stride + own);
                if (job.other) other[j] = load(job.other, FACTOR, at * job.other_along + own);
            }
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) add(sums[j], weight[j], other[j]);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) shared[warp][8 * lane + j] = sums[j];
    __syncthreads();
    if (line + threadIdx.x < job.lines) {
        Sums total = {};
        for (int other = 0; other < 8; ++other) {
            total.square += shared[other][threadIdx.x].square;
            total.inner += shared[other][threadIdx.x].inner;
            total.delta += shared[other][threadIdx.x].delta;
        }
        put(job, partial, place.chunk, line + threadIdx.x, total);
    }
}
