// Products by AMX: an instruction adds 32 inputs' shares to 16 rows of 16 outputs. Weights lie as for vdpbf16ps.
#pragma once

#include "gemm.hpp"

#if RLFN_AMX

#include <cerrno>
#include <csignal>
#include <fcntl.h>
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
    // Sums of 16 rows times N vectors of weights, made in steps: none yet; FIRST inputs more, of rows that lie STRIDE
    // numbers apart; the rest of the inputs; and to `to`, N vectors a row. All 16 rows are read.
// The numbers of registers have to be literals.
#define RLFN_EACH(step)    \
    if constexpr (N > 0) { \
        step(0);           \
    }                      \
    if constexpr (N > 1) { \
        step(1);           \
    }                      \
    if constexpr (N > 2) { \
        step(2);           \
    }                      \
    if constexpr (N > 3) { \
        step(3);           \
    }
#define RLFN_ADD(sums, rows, weights)                                 \
    _tile_loadd(weights, from + sums * 2 * LANES, 2 * 2 * N * LANES); \
    _tile_dpbf16ps(sums, rows, weights)
#define RLFN_FIRST(sums) RLFN_ADD(sums, 4, 5)
#define RLFN_REST(sums) RLFN_ADD(sums, 6, 7)
#define RLFN_STORE(sums) _tile_stored(sums, to + sums * LANES, 4 * N * LANES)
    template <int N>
    __attribute__((always_inline)) void begin() const {
        static_assert(N >= 1 && N <= 4);
        // The compiler does not know what tileload reads.
        fence(nullptr);
        RLFN_EACH(_tile_zero)
    }
    template <int N, int STRIDE>
    __attribute__((always_inline)) void add(const bf16* rows, const bf16* from) const {
        _tile_loadd(4, rows, 2 * STRIDE);
        RLFN_EACH(RLFN_FIRST)
    }
    template <int N, int STRIDE>
    __attribute__((always_inline)) void add_rest(const bf16* rows, const bf16* from) const {
        _tile_loadd(6, rows, 2 * STRIDE);
        RLFN_EACH(RLFN_REST)
    }
    template <int N>
    __attribute__((always_inline)) void end(float* to) const {
        RLFN_EACH(RLFN_STORE)
        fence(to);
    }
#undef RLFN_STORE
#undef RLFN_REST
#undef RLFN_FIRST
#undef RLFN_ADD
#undef RLFN_EACH

    // All of it over `taps`: the rows of a tap begin at from(tap), its weights `step` numbers after the tap's before.
    template <int N, int STRIDE, class From>
    __attribute__((always_inline)) void products(int taps, From&& from, const bf16* weights, size_t step,
                                                 float* to) const {
        begin<N>();
        for (int t = 0; t < taps; t++) {
            const bf16 *rows = from(t), *w = weights + t * step;
            add<N, STRIDE>(rows, w);
            add_rest<N, STRIDE>(rows + FIRST, w + FIRST * N * LANES);
        }
        end<N>(to);
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
        TAPS, [&](int t) { return rows[t]; }, weights, step, sums);
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
    // The child says by a pipe how it was: its end is not told where SIGCHLD is ignored, or to whoever asks second.
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return 2;
    const pid_t child = fork();
    if (child == 0) {
        for (int number : {SIGILL, SIGSEGV, SIGBUS, SIGFPE}) signal(number, SIG_DFL);
        const char well =
            tiles_multiply<3>(48) && tiles_multiply<3>(46) && tiles_multiply<4>(52) && tiles_multiply<4>(64);
        _exit(write(ends[1], &well, 1) == 1 ? 0 : 1);
    }
    close(ends[1]);
    char well = 0;
    ssize_t got = child < 0 ? 0 : -1;
    while (got < 0 && ((got = read(ends[0], &well, 1)) >= 0 || errno == EINTR)) {
    }
    close(ends[0]);
    if (child < 0) return 2;
    while (waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
    }
    return got == 1 && well ? 0 : 3;
}

}  // namespace rlfn

#endif
