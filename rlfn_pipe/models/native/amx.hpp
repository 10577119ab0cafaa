// Products by AMX: an instruction adds 32 inputs' shares to 16 rows of 16 outputs. Weights lie as for vdpbf16ps.
#pragma once

#include "gemm.hpp"

#if RLFN_AMX

#include <cerrno>
#include <csignal>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

namespace rlfn {

// The calling thread's tile registers, set up for rows of `inputs` (33 .. 64) numbers while this lives: 0 .. 3 hold
// sums, 4 and 5 a row's first 32 numbers and their weights, 6 and 7 the rest's. Where one lives within another's life,
// the other's set-up, which takes some 160 cycles, is kept or restored.
class Tiles {
   public:
    static constexpr int ROWS = 16, FIRST = 32;

    explicit Tiles(int inputs) : before_(current_) { set_up(inputs); }
    ~Tiles() { set_up(before_); }
    Tiles(const Tiles&) = delete;

   private:
    const int before_;
    static inline thread_local int current_ = 0;

    static void set_up(int inputs) {
        if (inputs == current_) return;
        current_ = inputs;
        if (inputs == 0) return _tile_release();
        struct {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } config;
        static_assert(sizeof(config) == 64);
        const int rest = inputs - FIRST;
        for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = ROWS;
        config.bytes[6] = static_cast<uint16_t>(2 * rest);
        config.rows[7] = static_cast<uint8_t>(rest / 2);
        fence(&config);
        _tile_loadconfig(&config);
    }

   public:
    // Where the first 32 numbers of a row lie, and the rest.
    struct Halves {
        const bf16 *first, *rest;
        explicit Halves(const bf16* row) : first(row), rest(row + FIRST) {}
        Halves(const bf16* first, const bf16* rest) : first(first), rest(rest) {}
    };

    // Sums over `taps` of 16 rows times N vectors of weights: the rows of a tap begin at from(tap), STRIDE numbers
    // apart (REST for their second half), its weights STEP numbers after the tap's before. N vectors a row go to `to`.
    // All 16 rows are read.
    template <int N, int STRIDE, int REST = STRIDE, class From>
    __attribute__((always_inline)) void products(int taps, From&& from, const bf16* weights, size_t step,
                                                 float* to) const {
        static_assert(N >= 1 && N <= 4);
        // The compiler does not know what tileload reads.
        fence(to);
        _tile_zero(0);
        if constexpr (N > 1) _tile_zero(1);
        if constexpr (N > 2) _tile_zero(2);
        if constexpr (N > 3) _tile_zero(3);
        constexpr long WEIGHTS = 2 * 2 * N * LANES;
// The numbers of registers have to be literals.
#define RLFN_ADD(sums, rows, weights)                        \
    if constexpr (N > sums) {                                \
        _tile_loadd(weights, w + sums * 2 * LANES, WEIGHTS); \
        _tile_dpbf16ps(sums, rows, weights);                 \
    }
        for (int t = 0; t < taps; t++) {
            const Halves a = from(t);
            const bf16* w = weights + t * step;
            _tile_loadd(4, a.first, 2 * STRIDE);
            RLFN_ADD(0, 4, 5);
            RLFN_ADD(1, 4, 5);
            RLFN_ADD(2, 4, 5);
            RLFN_ADD(3, 4, 5);
            w += FIRST * N * LANES;
            _tile_loadd(6, a.rest, 2 * REST);
            RLFN_ADD(0, 6, 7);
            RLFN_ADD(1, 6, 7);
            RLFN_ADD(2, 6, 7);
            RLFN_ADD(3, 6, 7);
        }
#undef RLFN_ADD
        constexpr long SUMS = 4 * N * LANES;
        _tile_stored(0, to, SUMS);
        if constexpr (N > 1) _tile_stored(1, to + LANES, SUMS);
        if constexpr (N > 2) _tile_stored(2, to + 2 * LANES, SUMS);
        if constexpr (N > 3) _tile_stored(3, to + 3 * LANES, SUMS);
    }

    // The same for 16 rows of FIRST numbers that lie side by side, of one tap.
    template <int N>
    __attribute__((always_inline)) void short_products(const bf16* rows, const bf16* weights, float* to) const {
        fence(to);
        constexpr long WEIGHTS = 2 * 2 * N * LANES, SUMS = 4 * N * LANES;
        _tile_loadd(4, rows, 2 * FIRST);
#define RLFN_ONE(sums)                                       \
    if constexpr (N > sums) {                                \
        _tile_zero(sums);                                    \
        _tile_loadd(5, weights + sums * 2 * LANES, WEIGHTS); \
        _tile_dpbf16ps(sums, 4, 5);                          \
        _tile_stored(sums, to + sums * LANES, SUMS);         \
    }
        RLFN_ONE(0);
        RLFN_ONE(1);
        RLFN_ONE(2);
        RLFN_ONE(3);
#undef RLFN_ONE
    }

   private:
    static void fence(const void* seen) { asm volatile("" ::"r"(seen) : "memory"); }
};

// Whether small whole numbers are multiplied and summed without error.
template <int N>
bool tiles_multiply(int inputs) {
    constexpr int CS = N * LANES, TAPS = 2;
    static bf16 rows[TAPS][Tiles::ROWS * CS], weights[TAPS * CS * CS];
    static float sums[Tiles::ROWS * CS];
    auto row = [](int t, int m, int k) { return (3 * t + 5 * m + 7 * k) % 11 - 5; };
    auto weight = [](int t, int k, int o) { return (t + 2 * k + 3 * o) % 13 - 6; };
    auto short_of = [](int value) {
        const float exact = static_cast<float>(value);
        uint32_t bits;
        std::memcpy(&bits, &exact, 4);
        return static_cast<bf16>(bits >> 16);
    };
    const size_t step = static_cast<size_t>(inputs) * CS;
    for (int t = 0; t < TAPS; t++)
        for (int k = 0; k < inputs; k++) {
            for (int m = 0; m < Tiles::ROWS; m++) rows[t][m * CS + k] = short_of(row(t, m, k));
            for (int o = 0; o < CS; o++)
                weights[t * step + static_cast<size_t>(k / 2) * CS * 2 + o * 2 + k % 2] = short_of(weight(t, k, o));
        }
    Tiles(inputs).products<N, CS>(
        TAPS, [&](int t) { return Tiles::Halves(rows[t]); }, weights, step, sums);
    for (int m = 0; m < Tiles::ROWS; m++)
        for (int o = 0; o < CS; o++) {
            int wanted = 0;
            for (int t = 0; t < TAPS; t++)
                for (int k = 0; k < inputs; k++) wanted += row(t, m, k) * weight(t, k, o);
            if (sums[m * CS + o] != static_cast<float>(wanted)) return false;
        }
    return true;
}

// 0 where the system lets this process use AMX and a child that tried it was well; else the step that failed.
inline int try_tiles() {
    constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18;
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) != 0) return 1;
    const pid_t child = fork();
    if (child < 0) return 2;
    if (child == 0) {
        for (int number : {SIGILL, SIGSEGV, SIGBUS, SIGFPE}) signal(number, SIG_DFL);
        _exit(tiles_multiply<3>(48) && tiles_multiply<3>(46) && tiles_multiply<4>(52) && tiles_multiply<4>(64) ? 0 : 1);
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) return 2;
    return status == 0 ? 0 : 3;
}

}  // namespace rlfn

#endif
