// AdamW and SGD of all parameters in one launch each. Step counters and learning rates are read from the device, so that
// a captured graph goes on counting. The same formulas as torch.optim's.
#include "layout.cuh"
#include "tables.cuh"

// As in shearfx/cuda/updating.py.
struct Update {
    void *parameter;
    i64 kind;  // of the parameter and its state
    const void *gradient;
    i64 gradient_kind;
    void *average;  // exp_avg, or the momentum's buffer, or null
    void *square;   // exp_avg_sq, or null
    float *step;    // or null
    const float *rate;
    i64 count;
    double beta, beta_square, epsilon, decay;  // SGD: beta is its momentum
};

// One tensor a thread. Before the update, as torch counts.
extern "C" __global__ void __launch_bounds__(THREADS) count_steps(const Update *table, i64 jobs) {
    const i64 number = i64(blockIdx.x) * THREADS + threadIdx.x;
    if (number < jobs) *table[number].step += 1.0f;
}

extern "C" __global__ void __launch_bounds__(THREADS) adamw(const Update *table, const i64 *first, i64 jobs) {
    __shared__ float corrections[2];
    const i64 number = find_job(first, jobs, blockIdx.x);
    const Update &job = table[number];
    if (threadIdx.x == 0) {
        const double step = *job.step;
        corrections[0] = float(1.0 - pow(job.beta, step));
        corrections[1] = float(sqrt(1.0 - pow(job.beta_square, step)));
    }
    __syncthreads();
    const int kind = int(job.kind);
    const float rate = *job.rate, beta = float(job.beta), beta_square = float(job.beta_square);
    const float rest = float(1.0 - job.beta), rest_square = float(1.0 - job.beta_square);
    const float shrink = float(1.0 - double(rate) * job.decay), epsilon = float(job.epsilon);
    const float size = rate / corrections[0];
    const i64 start = (blockIdx.x - first[number]) * UPDATE_CHUNK, end = least(job.count, start + UPDATE_CHUNK);
#pragma unroll 4
    for (i64 i = start + threadIdx.x; i < end; i += THREADS) {
        const float gradient = load(job.gradient, int(job.gradient_kind), i);
        const float average = fmaf(beta, load(job.average, kind, i), rest * gradient);
        const float square = fmaf(beta_square, load(job.square, kind, i), rest_square * gradient * gradient);
        const float length = sqrtf(square) / corrections[1] + epsilon;
        store(job.average, kind, i, average);
        store(job.square, kind, i, square);
        store(job.parameter, kind, i, load(job.parameter, kind, i) * shrink - size * average / length);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) sgd(const Update *table, const i64 *first, i64 jobs) {
    const i64 number = find_job(first, jobs, blockIdx.x);
    const Update &job = table[number];
    const int kind = int(job.kind);
    const float rate = *job.rate, momentum = float(job.beta), decay = float(job.decay);
    const i64 start = (blockIdx.x - first[number]) * UPDATE_CHUNK, end = least(job.count, start + UPDATE_CHUNK);
#pragma unroll 4
    for (i64 i = start + threadIdx.x; i < end; i += THREADS) {
        const float parameter = load(job.parameter, kind, i);
        float change = fmaf(decay, parameter, load(job.gradient, int(job.gradient_kind), i));
        if (job.average) {
            change = fmaf(momentum, load(job.average, kind, i), change);
            store(job.average, kind, i, change);
        }
        store(job.parameter, kind, i, parameter - rate * change);
    }
}
