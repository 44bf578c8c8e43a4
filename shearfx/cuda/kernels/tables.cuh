// What one launch is told of all tensors at once, and which block does what. Every field has eight bytes:
// shearfx/cuda/tables.py packs the same fields in the same order.
#pragma once
#include "numbers.cuh"

// Some lines (rows or columns) of a stored matrix, and the two thin factors whose product lies along it:
// element (line, along) has the displacement  scaling * sum_k lead(line, k) * other(k, along).
struct Matrix {
    void *weight;
    i64 kind, lines, along, line_stride, along_stride;
    const i64 *index;  // which line of the matrix each line is; null: all, in their order
    void *lead;
    i64 lead_kind, lead_line, lead_rank;
    void *other;  // of rank 0: a matrix like the weight that stands in the product's place, or null
    i64 other_kind, other_rank, other_along;
    i64 rank;
    double scaling;
    i64 line_at;     // where its lines begin in what is written per line
    i64 partial_at;  // where its partial sums begin, in floats
    i64 parts;       // partial sums per line and chunk: 2, or 3 with a matrix in the product's place
    i64 gram_at;     // where its Gram matrix begins, in floats; -1: not wanted
    i64 strips, chunks, gram_chunks;
    i64 slot_at;  // where its lines begin in what is kept per line of a fading structure
};

__device__ inline i64 line_of(const Matrix &job, i64 line) { return job.index ? job.index[line] : line; }

__device__ inline i64 ceil_div(i64 number, i64 by) { return (number + by - 1) / by; }

__device__ inline i64 least(i64 one, i64 other) { return one < other ? one : other; }

// The job of a block: `first[j]` is the first block of job j, `first[jobs]` the number of all blocks. Jobs may be empty.
__device__ inline i64 find_job(const i64 *first, i64 jobs, i64 block) {
    i64 low = 0, high = jobs;  // first[low] <= block < first[high]
    while (high - low > 1) {
        const i64 middle = (low + high) / 2;
        if (first[middle] <= block)
            low = middle;
        else
            high = middle;
    }
    return low;
}

// Where a block works: strips of lines run fastest, so that blocks beside each other share what lies along.
struct Place {
    i64 job, strip, chunk;
};

__device__ inline Place place_of(const i64 *first, i64 jobs, i64 block, const Matrix *table) {
    Place place;
    place.job = find_job(first, jobs, block);
    const i64 within = block - first[place.job];
    place.strip = within % table[place.job].strips;
    place.chunk = within / table[place.job].strips;
    return place;
}

// Whether eight neighbours from every line's start on lie at multiples of 16 bytes.
__device__ inline bool aligned(const void *base, int kind, i64 stride) {
    const i64 size = kind == FLOAT32 ? 4 : 2;
    return ((reinterpret_cast<i64>(base) | (stride * size)) & 15) == 0;
}
