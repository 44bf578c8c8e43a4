// Sums of a weight alone, or of a weight (WEIGHT_KIND) and a matrix of its shape (FACTOR_KIND): a gradient in BA's place.
#include "statistics_dense.cuh"

#define KERNEL(side)                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS)                                \
        dense_##side(const Matrix *table, const i64 *first, i64 jobs, float *partial) {  \
        sums_of_##side<WEIGHT_KIND, FACTOR_KIND>(table, first, jobs, partial);                       \
    }
KERNEL(rows)
KERNEL(columns)
