// CUDA kernels on the host: every thread of a block is a fibre, which runs until it waits for others. The very sources
// that a card runs are built against this, so that their numbers, barriers and index arithmetic can be tested without
// one. Threads run in an order drawn from a seed, so that a missing barrier shows; a barrier that some threads have
// passed by, or that is never complete, is an error.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <tuple>
#include <utility>
#include <vector>

#define SHEARFX_HOST
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

struct Dim {
    unsigned x = 1, y = 1, z = 1;
};
static Dim threadIdx, blockIdx, blockDim, gridDim;

static inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
static inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

namespace emulator {

constexpr std::size_t STACK = 256 * 1024;
enum class State { ready, block, warp, done };

struct Fibre {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(STACK);
    State state = State::ready;
    unsigned turn = 0;  // which of the two rooms its warp exchanges in next
};

struct Exchange {
    unsigned word[32][6];
};

static std::vector<Fibre> fibres;
static std::vector<Exchange> rooms[2];
static ucontext_t scheduler;
static unsigned running;
static void (*body)(void *);
static void *body_of;

[[noreturn]] static inline void fail(const char *what) {
    std::fprintf(stderr, "emulated kernel: %s (block %u, thread %u)\n", what, blockIdx.x, running);
    std::abort();
}

static inline void wait(State state) {
    Fibre &own = fibres[running];
    own.state = state;
    swapcontext(&own.context, &scheduler);
}

static void enter() {
    body(body_of);
    fibres[running].state = State::done;
    swapcontext(&fibres[running].context, &scheduler);
}

static inline bool all(unsigned from, unsigned to, State state) {
    for (unsigned i = from; i < to; ++i)
        if (fibres[i].state != state) return false;
    return true;
}

static inline bool any(unsigned from, unsigned to, State state) {
    for (unsigned i = from; i < to; ++i)
        if (fibres[i].state == state) return true;
    return false;
}

static inline void run_block(unsigned threads, std::mt19937 &random) {
    std::vector<unsigned> order(threads);
    unsigned last = threads;  // the warp that ran last
    for (unsigned i = 0; i < threads; ++i) {
        order[i] = i;
        Fibre &one = fibres[i];
        one.state = State::ready;
        one.turn = 0;
        getcontext(&one.context);
        one.context.uc_stack.ss_sp = one.stack.data();
        one.context.uc_stack.ss_size = STACK;
        one.context.uc_link = nullptr;
        makecontext(&one.context, enter, 0);
    }
    // all warps in step, or one as far as it gets before another starts: each shows barriers that the other does not
    const bool skewed = random() % 2;
    while (true) {
        for (unsigned i = threads; i > 1; --i) std::swap(order[i - 1], order[random() % i]);
        bool ran = false, left = false;
        unsigned ahead = threads / 32;
        for (unsigned i : order)
            if (fibres[i].state == State::ready) ahead = i / 32;
        if (last < threads / 32 && any(32 * last, 32 * last + 32, State::ready)) ahead = last;
        last = ahead;
        for (unsigned i : order) {
            if (fibres[i].state != State::ready || (skewed && i / 32 != ahead)) continue;
            running = i;
            threadIdx.x = i;
            swapcontext(&scheduler, &fibres[i].context);
            ran = true;
        }
        for (unsigned i = 0; i < threads; i += 32)
            if (all(i, i + 32, State::warp))
                for (unsigned lane = i; lane < i + 32; ++lane) fibres[lane].state = State::ready;
        if (all(0, threads, State::block))
            for (unsigned i = 0; i < threads; ++i) fibres[i].state = State::ready;
        for (unsigned i = 0; i < threads; ++i) {
            left |= fibres[i].state != State::done;
            ran |= fibres[i].state == State::ready;
        }
        if (!left) return;
        if (!ran) fail("threads wait for others that have ended or wait elsewhere");
    }
}

template <class... P, std::size_t... I>
static void call(void (*kernel)(P...), unsigned grid, unsigned threads, unsigned seed, void **arguments,
                 std::index_sequence<I...>) {
    auto bound = [&] { kernel(*static_cast<P *>(arguments[I])...); };
    body = [](void *own) { (*static_cast<decltype(bound) *>(own))(); };
    body_of = &bound;
    if (threads % 32) fail("blocks are whole warps");
    if (fibres.size() < threads) fibres = std::vector<Fibre>(threads);
    for (auto &room : rooms) room.resize(threads / 32);
    std::mt19937 random(seed);
    std::vector<unsigned> order(grid);
    for (unsigned i = 0; i < grid; ++i) order[i] = i;
    for (unsigned i = grid; i > 1; --i) std::swap(order[i - 1], order[random() % i]);
    blockDim.x = threads;
    gridDim.x = grid;
    for (unsigned block : order) {
        blockIdx.x = block;
        run_block(threads, random);
    }
}

template <class... P>
static void start(void (*kernel)(P...), unsigned grid, unsigned threads, unsigned seed, void **arguments) {
    call(kernel, grid, threads, seed, arguments, std::index_sequence_for<P...>{});
}

// Words of this lane to the others of its warp; what all of them gave. The rooms take turns, so that a lane which
// goes ahead overwrites nothing that another has still to read.
static inline const Exchange &exchange(const unsigned *words, unsigned count) {
    Fibre &own = fibres[running];
    Exchange &room = rooms[own.turn][running / 32];
    own.turn ^= 1;
    std::memcpy(room.word[running % 32], words, count * sizeof(unsigned));
    wait(State::warp);
    return room;
}

}  // namespace emulator

static inline void __syncthreads() { emulator::wait(emulator::State::block); }

static inline float __shfl_xor_sync(unsigned mask, float value, int apart) {
    if (mask != 0xffffffffu) emulator::fail("a shuffle of part of a warp");
    const unsigned word = __float_as_uint(value);
    return __uint_as_float(emulator::exchange(&word, 1).word[(emulator::running % 32) ^ unsigned(apart)][0]);
}

// mma.m16n8k16 of bfloat16 by the layout that the PTX ISA documents (see matrix_units.cuh).
static inline void multiply(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    const unsigned words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const emulator::Exchange &all = emulator::exchange(words, 6);
    const unsigned lane = emulator::running % 32;
    auto half = [](unsigned word, unsigned k) { return __uint_as_float(k % 2 ? word & 0xffff0000u : word << 16); };
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
        for (unsigned k = 0; k < 16; ++k) {
            const unsigned from = k % 8 / 2;
            d[i] += half(all.word[4 * (row % 8) + from][row / 8 + 2 * (k / 8)], k) *
                    half(all.word[4 * column + from][4 + k / 8], k);
        }
    }
}

#define EXPORT(name)                                                                                       \
    extern "C" void emulate_##name(unsigned grid, unsigned threads, unsigned seed, void **arguments) {     \
        emulator::start(name, grid, threads, seed, arguments);                                             \
    }
