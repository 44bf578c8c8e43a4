// What the headers compute, thread by thread, for the tests to look at.
#include "layout.cuh"
#include "tables.cuh"

// Which job and where in it each block works.
extern "C" __global__ void places(const Matrix *table, const i64 *first, i64 jobs, i64 *found) {
    const Place place = place_of(first, jobs, blockIdx.x, table);
    if (threadIdx.x) return;
    found[3 * blockIdx.x] = place.job;
    found[3 * blockIdx.x + 1] = place.strip;
    found[3 * blockIdx.x + 2] = place.chunk;
}

// Every field of a table's row, in the order in which Python packs them.
extern "C" __global__ void fields(const Matrix *row, i64 *found) {
    if (threadIdx.x) return;
    const i64 all[] = {(i64)row->weight, row->kind,       row->lines,       row->along,      row->line_stride,
                       row->along_stride, (i64)row->index, (i64)row->lead,   row->lead_kind,  row->lead_line,
                       row->lead_rank,    (i64)row->other, row->other_kind,  row->other_rank, row->other_along,
                       row->rank,         i64(row->scaling), row->line_at,   row->partial_at, row->parts,
                       row->gram_at,      row->strips,     row->chunks,      row->gram_chunks, row->slot_at,
                       sizeof(Matrix)};
    for (unsigned i = 0; i < sizeof(all) / 8; ++i) found[i] = all[i];
}

// 16 bits and back: `from` holds every pattern once.
extern "C" __global__ void widen(const u16 *from, i64 kind, float *to, i64 count) {
    const i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) to[i] = load(from, int(kind), i);
}

extern "C" __global__ void narrow(const float *from, i64 kind, u16 *to, i64 count) {
    const i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) store(to, int(kind), i, from[i]);
}

// A sum of two bfloat16.
extern "C" __global__ void halves(const float *from, float *to, i64 count) {
    const i64 i = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    u16 high, low;
    if (i >= count) return;
    split(from[i], high, low);
    to[i] = bfloat16_to_float(high) + bfloat16_to_float(low);
}

// A barrier that half of the block never reaches.
extern "C" __global__ void stuck(i64) {
    if (threadIdx.x < 32) __syncthreads();
}
