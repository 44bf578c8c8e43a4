// LHSPG's step on the weights themselves: LoRAShear, Algorithm 4, lines 7 and 8, and equation (2).
#include "step_replace.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    replace_lines(const Matrix *table, const i64 *first, i64 jobs, const i64 *slots, const float *factors,
                  const int *fallen) {
    step_replace<WEIGHT_KIND, FACTOR_KIND>(table, first, jobs, slots, factors, fallen);
}
