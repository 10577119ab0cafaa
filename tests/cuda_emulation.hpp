// What kernels.cu takes from a GPU, in plain C++: the threads of a block are fibers that take turns, matrix instructions work
// on what all lanes of a warp brought, and copies to shared memory happen when they are waited for.

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#define EMULATED 1
#define DEVICE static inline
#define KERNEL extern "C" void
#define SHARED(name) uint4* name = (uint4*)emulation::shared.data()
#define __shared__ static
#define __launch_bounds__(...)

using std::max;
using std::min;

struct uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct Index {
    unsigned x, y, z;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

struct Lane {
    float a[4][2], b[2][2];
    const char* row;
};
struct Barrier {
    int arrived = 0, turn = 0;
};
struct Copy {
    void* to;
    const void* from;
};
struct Fiber {
    ucontext_t context;
    jmp_buf place;
    std::vector<char> stack = std::vector<char>(1 << 15);
    bool begun = false;
    std::vector<Copy> copies;
    int turn = 0;
    bool done = false;
};

static std::vector<uint4> shared;
static std::vector<Fiber> fibers;
static std::vector<Barrier> warps;
static std::vector<Lane> lanes[2];
static Barrier barriers[16];
static jmp_buf home;
static Fiber* current;

// A context begins a fiber, jumps are what it goes on by: they ask the system for nothing.
static void rest() {
    if (!_setjmp(current->place)) _longjmp(home, 1);
}

static void wait(Barrier& barrier, int count) {
    int turn = barrier.turn;
    if (++barrier.arrived == count) {
        barrier.arrived = 0, barrier.turn++;
        return;
    }
    while (barrier.turn == turn) rest();
}

// What all 32 lanes brought, this one `mine`.
static const Lane* gathered(const Lane& mine) {
    std::vector<Lane>& place = lanes[current->turn++ % 2];
    place[threadIdx.x] = mine;
    wait(warps[threadIdx.x / 32], 32);
    return &place[threadIdx.x / 32 * 32];
}

// All fp16 numbers, since most processors convert them step by step.
static const std::vector<float> numbers = [] {
    std::vector<float> all(1 << 16);
    for (int i = 0; i < 1 << 16; i++) {
        uint16_t bits = i;
        _Float16 value;
        std::memcpy(&value, &bits, 2);
        all[i] = (float)value;
    }
    return all;
}();

static float half_of(uint32_t both, int which) { return numbers[which ? both >> 16 : both & 0xffff]; }

static uint32_t bits_of(float value) {
    _Float16 half = (_Float16)value;
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
}

static void multiply(float (&c)[4], const uint32_t* a, uint32_t b0, uint32_t b1, int depth) {
    Lane mine = {};
    for (int which = 0; which < 2; which++) {
        for (int i = 0; i < depth / 4; i++) mine.a[i][which] = half_of(a[i], which);
        mine.b[0][which] = half_of(b0, which), mine.b[1][which] = half_of(b1, which);
    }
    const Lane* all = gathered(mine);
    int lane = threadIdx.x % 32;
    for (int i = 0; i < 4; i++) {
        int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        float sum = 0;
        for (int k = 0; k < depth; k++)
            sum += all[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2][k % 2] * all[column * 4 + k % 8 / 2].b[k / 8][k % 2];
        c[i] += sum;
    }
}

template <class... A, size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(A*)arguments[I]...);
}

static void (*body)(void**);
static void** given;

static void enter() {
    body(given);
    current->done = true;
    rest();
}

static void run(void (*kernel)(void**), int across, int down, int threads, int bytes, void** arguments) {
    body = kernel, given = arguments;
    // What nobody wrote is nonsense.
    shared.assign((bytes + 15) / 16, uint4{0x7e007e00u, 0x7e007e00u, 0x7e007e00u, 0x7e007e00u});
    gridDim = {(unsigned)across, (unsigned)down, 1}, blockDim = {(unsigned)threads, 1, 1};
    for (volatile int block = 0; block < across * down; block = block + 1) {
        blockIdx = {(unsigned)(block % across), (unsigned)(block / across), 0};
        if ((int)fibers.size() != threads) fibers = std::vector<Fiber>(threads);
        warps.assign((threads + 31) / 32, Barrier());
        for (auto& place : lanes) place.assign(threads, Lane());
        for (Barrier& barrier : barriers) barrier = Barrier();
        for (Fiber& fiber : fibers) {
            fiber.turn = 0, fiber.begun = fiber.done = false;
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.data();
            fiber.context.uc_stack.ss_size = fiber.stack.size();
            makecontext(&fiber.context, enter, 0);
        }
        for (volatile bool busy = true; busy;) {
            busy = false;
            for (volatile int i = 0; i < threads; i = i + 1) {
                if (fibers[i].done) continue;
                busy = true, current = &fibers[i], threadIdx = {(unsigned)i, 0, 0};
                if (_setjmp(home)) continue;
                if (current->begun) _longjmp(current->place, 1);
                current->begun = true;
                setcontext(&current->context);
            }
        }
    }
}

}  // namespace emulation

DEVICE void copy16(void* to, const void* from, bool real) {
    if (((uintptr_t)to | (uintptr_t)from) % 16) abort();
    emulation::current->copies.push_back({to, real ? from : nullptr});
}

DEVICE void copies_done() {
    for (emulation::Copy copy : emulation::current->copies) {
        if (copy.from) std::memcpy(copy.to, copy.from, 16);
        else std::memset(copy.to, 0, 16);
    }
    emulation::current->copies.clear();
}

DEVICE void meet(int number, int count) { emulation::wait(emulation::barriers[number], count); }

DEVICE void rows16(uint32_t (&a)[4], const void* row) {
    if ((uintptr_t)row % 16) abort();
    emulation::Lane mine = {};
    mine.row = (const char*)row;
    const emulation::Lane* all = emulation::gathered(mine);
    int lane = threadIdx.x % 32;
    // The last lanes of a narrow fragment may point beyond what was taken, by 16 bytes at most.
    const char* end = (const char*)(emulation::shared.data() + emulation::shared.size());
    for (int i = 0; i < 4; i++) {
        const char* from = all[8 * i + lane / 4].row + lane % 4 * 4;
        if (from + 4 > end) abort();
        std::memcpy(&a[i], from, 4);
    }
}

DEVICE void multiply16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    emulation::multiply(c, a, b0, b1, 16);
}

DEVICE void multiply8(float (&c)[4], const uint32_t (&a)[4], uint32_t b0) { emulation::multiply(c, a, b0, 0, 8); }

DEVICE uint32_t pack(float low, float high) { return emulation::bits_of(low) | emulation::bits_of(high) << 16; }
DEVICE float low_of(uint32_t both) { return emulation::half_of(both, 0); }
DEVICE float high_of(uint32_t both) { return emulation::half_of(both, 1); }
DEVICE uint32_t larger(uint32_t one, uint32_t other) {
    return pack(std::fmax(low_of(one), low_of(other)), std::fmax(high_of(one), high_of(other)));
}
DEVICE float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

// A function that Python can call for a kernel.
#define EMULATE(name)                                                                                           \
    template <class... A>                                                                                       \
    static void call_all(void (*kernel)(A...), void** arguments) {                                              \
        emulation::call(kernel, arguments, std::index_sequence_for<A...>());                                    \
    }                                                                                                           \
    static void call_one(void** arguments) { call_all(name, arguments); }                                       \
    extern "C" void emulate(int across, int down, int threads, int bytes, void** arguments) {                   \
        emulation::run(call_one, across, down, threads, bytes, arguments);                                      \
    }
