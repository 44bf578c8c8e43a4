// Tensor cores: D += A B for 16 x 16 times 16 x 8 numbers in bfloat16, summed in float32. Lane 4 g + q holds
//   A rows g and g + 8:   a[0] = (g, 2q..2q+1)   a[1] = (g + 8, 2q..)   a[2] = (g, 2q + 8..)   a[3] = (g + 8, 2q + 8..)
//   B column g:           b[0] = (2q..2q+1, g)   b[1] = (2q + 8.., g)
//   D:                    d[0..1] = (g, 2q..2q+1)                       d[2..3] = (g + 8, 2q..2q+1)
// Source: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
#pragma once
#include "numbers.cuh"

#ifndef SHEARFX_HOST
__device__ inline void multiply(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
#endif

// The same of a sum of two bfloat16 each; what both low parts would add (2^-16 of it) is left out.
template <bool LOW_A, bool LOW_B>
__device__ inline void multiply_split(float (&d)[4], const u32 (&a)[4], const u32 (&low_a)[4], const u32 (&b)[2],
                                      const u32 (&low_b)[2]) {
    multiply(d, a, b);
    if (LOW_A) multiply(d, low_a, b);
    if (LOW_B) multiply(d, a, low_b);
}

// Ranks x `WIDTH` numbers of the factor that lies along, in shared memory as sums of two bfloat16. The pitch keeps the
// reads of a quarter of a warp (16 bytes a lane) or of a half (8 bytes a lane) on banks of their own.
template <int FACTOR, int RANKS, int WIDTH, int PITCH>
struct Staged {
    alignas(16) u16 high[RANKS][PITCH];
    alignas(16) u16 low[RANKS][PITCH];

    // Ranks from `rank` on, numbers from `start` to before `end`; zero beyond. All threads of the block.
    template <class Job>
    __device__ void fill(const Job &job, i64 rank, i64 start, i64 end) {
        // neighbours in memory to neighbours among threads
        const bool along = job.other_along == 1;
#pragma unroll 1
        for (int i = threadIdx.x; i < RANKS * WIDTH; i += blockDim.x) {
            const int k = along ? i / WIDTH : i % RANKS, j = along ? i % WIDTH : i / RANKS;
            float value = 0.0f;
            if (rank + k < job.rank && start + j < end)
                value = load(job.other, FACTOR, (rank + k) * job.other_rank + (start + j) * job.other_along);
            split(value, high[k][j], low[k][j]);
        }
    }
};
