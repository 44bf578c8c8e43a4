// Numbers of 16 bits by bit operations, so that no toolkit header is needed and the host computes the same.
#pragma once

using i64 = long long;
using u16 = unsigned short;
using u32 = unsigned int;

// As in shearfx/cuda/tables.py.
constexpr int FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2;

__device__ inline float bfloat16_to_float(u16 bits) { return __uint_as_float(u32(bits) << 16); }

// Round to nearest, ties to even; NaN stays NaN.
__device__ inline u16 float_to_bfloat16(float value) {
    const u32 bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;
    return u16((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

__device__ inline float float16_to_float(u16 half) {
    // a subnormal half becomes a subnormal float, which the product makes normal: the kernels are built without -ftz
    u32 bits = __float_as_uint(__uint_as_float(u32(half & 0x7fffu) << 13) * __uint_as_float(0x77800000u));  // 2^112
    if ((half & 0x7c00u) == 0x7c00u) bits |= 0x7f800000u;
    return __uint_as_float(bits | (u32(half & 0x8000u) << 16));
}

__device__ inline u16 float_to_float16(float value) {
    const u32 bits = __float_as_uint(value), size = bits & 0x7fffffffu;
    const u16 sign = u16((bits >> 16) & 0x8000u);
    if (size > 0x7f800000u) return sign | 0x7e00u;
    if (size >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and more round to infinity
    if (size < 0x38800000u)  // below 2^-14: the last bit of 0.5f is the step between subnormal halves
        return sign | u16(__float_as_uint(__uint_as_float(size) + 0.5f) - 0x3f000000u);
    return sign | u16((size + 0xc8000fffu + ((size >> 13) & 1u)) >> 13);
}

__device__ inline float load(const void *base, int kind, i64 at) {
    if (kind == FLOAT32) return static_cast<const float *>(base)[at];
    const u16 bits = static_cast<const u16 *>(base)[at];
    return kind == BFLOAT16 ? bfloat16_to_float(bits) : float16_to_float(bits);
}

__device__ inline void store(void *base, int kind, i64 at, float value) {
    if (kind == FLOAT32)
        static_cast<float *>(base)[at] = value;
    else
        static_cast<u16 *>(base)[at] = kind == BFLOAT16 ? float_to_bfloat16(value) : float_to_float16(value);
}

// A float as the sum of two bfloat16: 16 bits of its mantissa, so the sum is off by at most 2^-17 of it.
__device__ inline void split(float value, u16 &high, u16 &low) {
    high = float_to_bfloat16(value);
    low = float_to_bfloat16(value - bfloat16_to_float(high));
}

// The same of a number that was read as KIND: a bfloat16 is its own high part.
template <int KIND>
__device__ inline void split_read(float value, u16 &high, u16 &low) {
    if (KIND == BFLOAT16) {
        high = u16(__float_as_uint(value) >> 16);
        low = 0;
    } else {
        split(value, high, low);
    }
}

__device__ inline u32 pair(u16 first, u16 second) { return u32(first) | (u32(second) << 16); }

struct alignas(16) Four {
    u32 word[4];
};
struct alignas(8) Two {
    u32 word[2];
};

// Up to eight neighbours, the rest zero. `vector`: all eight are there, and the address is a multiple of 16 bytes.
template <int KIND>
__device__ inline void load_eight(const void *base, i64 at, i64 valid, bool vector, float (&value)[8]) {
    if (vector && KIND == FLOAT32) {
        const Four *from = reinterpret_cast<const Four *>(static_cast<const float *>(base) + at);
        const Four one = from[0], two = from[1];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            value[i] = __uint_as_float(one.word[i]);
            value[i + 4] = __uint_as_float(two.word[i]);
        }
    } else if (vector) {
        const Four one = *reinterpret_cast<const Four *>(static_cast<const u16 *>(base) + at);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const u16 bits = u16(one.word[i / 2] >> (i % 2 * 16));
            value[i] = KIND == BFLOAT16 ? bfloat16_to_float(bits) : float16_to_float(bits);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) value[i] = i < valid ? load(base, KIND, at + i) : 0.0f;
    }
}

// Up to four neighbours. `vector`: all four are there, and their address is a multiple of their bytes.
template <int KIND>
__device__ inline void load_four(const void *base, i64 at, i64 valid, bool vector, float (&value)[4]) {
    if (vector && KIND == FLOAT32) {
        const Four four = *reinterpret_cast<const Four *>(static_cast<const float *>(base) + at);
#pragma unroll
        for (int i = 0; i < 4; ++i) value[i] = __uint_as_float(four.word[i]);
    } else if (vector) {
        const Two two = *reinterpret_cast<const Two *>(static_cast<const u16 *>(base) + at);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const u16 bits = u16(two.word[i / 2] >> (i % 2 * 16));
            value[i] = KIND == BFLOAT16 ? bfloat16_to_float(bits) : float16_to_float(bits);
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) value[i] = i < valid ? load(base, KIND, at + i) : 0.0f;
    }
}

template <int KIND>
__device__ inline void store_four(void *base, i64 at, i64 valid, bool vector, const float (&value)[4]) {
    if (vector && KIND == FLOAT32) {
        Four four;
#pragma unroll
        for (int i = 0; i < 4; ++i) four.word[i] = __float_as_uint(value[i]);
        *reinterpret_cast<Four *>(static_cast<float *>(base) + at) = four;
    } else if (vector) {
        Two two;
#pragma unroll
        for (int i = 0; i < 2; ++i)
            two.word[i] = KIND == BFLOAT16 ? pair(float_to_bfloat16(value[2 * i]), float_to_bfloat16(value[2 * i + 1]))
                                           : pair(float_to_float16(value[2 * i]), float_to_float16(value[2 * i + 1]));
        *reinterpret_cast<Two *>(static_cast<u16 *>(base) + at) = two;
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (i < valid) store(base, KIND, at + i, value[i]);
    }
}
