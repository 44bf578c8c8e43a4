// The same sums without tensor cores: of any card, in float32 throughout.
#pragma once
#include "layout.cuh"
#include "tables.cuh"

// Adds up what threads hold for one line each, over the 16 threads of a line, in their order.
__device__ inline float over_parts(float value, float (&shared)[THREADS]) {
    __syncthreads();
    shared[threadIdx.x] = value;
    __syncthreads();
    float total = 0.0f;
#pragma unroll 1
    for (int part = 0; part < THREADS / PLAIN_STRIP; ++part) total += shared[part * PLAIN_STRIP + threadIdx.x % PLAIN_STRIP];
    return total;
}

// Sixteen lines with up to 128 ranks: thread (line, part) multiplies its line with ranks part, part + 16, ...
__device__ inline void statistics_plain(const Matrix *table, const i64 *first, i64 jobs, float *partial) {
    constexpr int WIDTH = 64, PARTS = THREADS / PLAIN_STRIP;
    __shared__ float weight[PLAIN_STRIP][WIDTH + 1], other[MOST_RANKS][WIDTH + 1], shared[THREADS];
    const Place place = place_of(first, jobs, blockIdx.x, table);
    const Matrix &job = table[place.job];
    const int mine = threadIdx.x % PLAIN_STRIP, part = threadIdx.x / PLAIN_STRIP;
    const i64 start = place.chunk * CHUNK, end = least(job.along, start + CHUNK);
    const i64 line = place.strip * PLAIN_STRIP;
    const bool along = job.along_stride == 1, other_along = job.other_along == 1;
    float square = 0.0f, sum[MOST_RANKS / PARTS] = {};
    for (i64 base = start; base < end; base += WIDTH) {
        __syncthreads();
#pragma unroll 1
        for (int i = threadIdx.x; i < PLAIN_STRIP * WIDTH; i += THREADS) {
            const int l = along ? i / WIDTH : i % PLAIN_STRIP, j = along ? i % WIDTH : i / PLAIN_STRIP;
            weight[l][j] = line + l < job.lines && base + j < end
                               ? load(job.weight, int(job.kind),
                                      line_of(job, line + l) * job.line_stride + (base + j) * job.along_stride)
                               : 0.0f;
        }
        const int ranks = int(job.rank);
#pragma unroll 1
        for (int i = threadIdx.x; i < ranks * WIDTH; i += THREADS) {
            const int k = other_along ? i / WIDTH : i % ranks, j = other_along ? i % WIDTH : i / ranks;
            other[k][j] = base + j < end ? load(job.other, int(job.other_kind),
                                                k * job.other_rank + (base + j) * job.other_along)
                                         : 0.0f;
        }
        __syncthreads();
        for (int j = part; j < WIDTH; j += PARTS) square = fmaf(weight[mine][j], weight[mine][j], square);
#pragma unroll
        for (int k = 0; k < MOST_RANKS / PARTS; ++k)
            if (part + PARTS * k < ranks) {
#pragma unroll 4
                for (int j = 0; j < WIDTH; ++j) sum[k] = fmaf(weight[mine][j], other[part + PARTS * k][j], sum[k]);
            }
    }
    float inner = 0.0f;
    if (line + mine < job.lines) {
        const i64 own = line_of(job, line + mine) * job.lead_line;
#pragma unroll
        for (int k = 0; k < MOST_RANKS / PARTS; ++k)
            if (part + PARTS * k < job.rank)
                inner = fmaf(sum[k], load(job.lead, int(job.lead_kind), own + (part + PARTS * k) * job.lead_rank), inner);
    }
    square = over_parts(square, shared);
    inner = over_parts(inner, shared);
    if (part == 0 && line + mine < job.lines) {
        float *to = partial + job.partial_at + (place.chunk * job.lines + line + mine) * job.parts;
        to[0] = square;
        to[1] = inner;
    }
}
