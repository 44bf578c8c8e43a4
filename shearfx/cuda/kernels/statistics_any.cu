// What statistics need beside the pass over the weights, and that pass for cards without bfloat16 on tensor cores.
#include "statistics_finish.cuh"
#include "statistics_plain.cuh"

#define PASS const Matrix *table, const i64 *first, i64 jobs, float *partial
#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS)

KERNEL product_plain(PASS) { statistics_plain(table, first, jobs, partial); }

KERNEL gram_chunks(PASS) { gram(table, first, jobs, partial); }

KERNEL gram_sums(PASS) { gram_finish(table, first, jobs, partial); }

KERNEL line_sums(const Matrix *table, const i64 *first, i64 jobs, const float *partial, const float *grams, float *found,
                 i64 lines) {
    finish(table, first, jobs, partial, grams, found, lines);
}
