// What LHSPG's step needs beside the weights: the half-space test, and the adapters' own slices set to zero.
#include "layout.cuh"
#include "tables.cuh"

// One structure a thread: its slices' sums in their order, by what it fades, and whether it falls. What has fallen
// before stays so. Source: LoRAShear, Algorithm 4, line 8, and equation (2).
//   members[from[s], from[s + 1]): the lines of structure s, as numbers into square and inner (null: not looked at)
extern "C" __global__ void __launch_bounds__(THREADS)
    decide(i64 structures, const i64 *from, const i64 *members, const float *square, const float *inner,
           const float *more_square, const float *more_inner, float *factors, int *fallen, i64 left, i64 constant,
           double strength, double epsilon) {
    const i64 s = i64(blockIdx.x) * THREADS + threadIdx.x;
    if (s >= structures) return;
    float length = more_square ? more_square[s] : 0.0f, learnt = more_inner ? more_inner[s] : 0.0f;
    for (i64 i = from[s]; square && i < from[s + 1]; ++i) {
        length += square[members[i]];
        learnt += inner[members[i]];
    }
    float factor = float(1.0 - 1.0 / double(left));
    if (constant) factor = fmaxf(1.0f - float(strength) / fmaxf(sqrtf(length), 1.17549435e-38f), 0.0f);
    // -inf never fires, also where nothing is left of a structure
    const bool outside = epsilon > -1e300 && factor * length + learnt < float(epsilon) * length;
    factors[s] = factor;
    if (left <= 1 || outside) fallen[s] = 1;
}

// Rows of B and columns of A: a job's lines of its own factor.
extern "C" __global__ void __launch_bounds__(THREADS) clear_factors(const Matrix *table, const i64 *first, i64 jobs) {
    const i64 number = find_job(first, jobs, blockIdx.x);
    const Matrix &job = table[number];
    const i64 start = (blockIdx.x - first[number]) * CLEAR_CHUNK, all = job.lines * job.rank;
    const i64 end = least(all, start + CLEAR_CHUNK);
    for (i64 i = start + threadIdx.x; i < end; i += THREADS) {
        const i64 line = job.lead_rank == 1 ? i / job.rank : i % job.lines;
        const i64 k = job.lead_rank == 1 ? i % job.rank : i / job.lines;
        store(job.lead, int(job.lead_kind), line_of(job, line) * job.lead_line + k * job.lead_rank, 0.0f);
    }
}
