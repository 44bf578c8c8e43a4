// ||w||^2 and <w, BA> on tensor cores, for one kind of weight (WEIGHT_KIND), one of factors (FACTOR_KIND) and up to 16, 32 or 64 ranks
// at a time (RANK_TILES_OF_16 = 1, 2, 4), which are defined when this is compiled.
// Source: LoRAShear, section 3.3; BA is never written out.
#include "statistics_columns.cuh"
#include "statistics_rows.cuh"

#define KERNEL(side)                                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS)                                  \
        product_##side(const Matrix *table, const i64 *first, i64 jobs, float *partial) {  \
        statistics_##side<WEIGHT_KIND, FACTOR_KIND, RANK_TILES_OF_16>(table, first, jobs, partial);          \
    }
KERNEL(rows)
KERNEL(columns)
