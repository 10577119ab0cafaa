// Products of short rows with packed weights: the inner loops of everything else.
//
// Channels are padded to vectors. Weights in float32 lie as [tap][input][vector of outputs][lane]; in bf16 as
// [tap][pair of inputs][vector of outputs][lane][2], so that one vdpbf16ps adds two inputs' shares to 16 outputs. A
// result's sums are made in one order, whatever stands beside it: bits do not depend on how a picture is cut.
#pragma once

#include <type_traits>

#include "vector.hpp"

namespace rlfn {

#if RLFN_WIDE

// Rows of a product that fit the 32 registers beside the weights.
template <int N>
constexpr int ROWS = N == 1   ? 16
                     : N == 2 ? 12
                     : N == 3 ? 8
                              : 6;

// Vectors of outputs that are summed at a time, of `left`.
constexpr int panel(int left) { return left; }

#else

// The same for 16 registers.
template <int N>
constexpr int ROWS = N == 1   ? 8
                     : N == 2 ? 6
                     : N == 3 ? 4
                              : 3;

constexpr int panel(int left) { return left <= 4 ? left : left == 7 ? 4 : 3; }

#endif

// Sums of M rows in N vectors from `column` on.
template <int M, int N>
struct Sums {
    Vector v[M][N];
    const int column;

    __attribute__((always_inline)) Sums(int column, const float* bias) : column(column) {
        for (int n = 0; n < N; n++) {
            Vector b = bias ? load(bias + (column + n) * LANES) : Vector{};
            for (int m = 0; m < M; m++) v[m][n] = b;
        }
    }

    // Adds rows of `inputs` numbers, STRIDE apart, times weights of WIDE vectors.
    template <int STRIDE, int WIDE>
    __attribute__((always_inline)) void add(const float* rows, int inputs, const float* weights) {
        weights += column * LANES;
        for (int k = 0; k < inputs; k++, rows += 1, weights += WIDE * LANES) {
            Vector w[N];
            for (int n = 0; n < N; n++) w[n] = load(weights + n * LANES);
#pragma GCC unroll 16
            for (int m = 0; m < M; m++) {
                Vector a = splat(rows[m * STRIDE]);
#pragma GCC unroll 4
                for (int n = 0; n < N; n++) v[m][n] = fma(a, w[n], v[m][n]);
            }
        }
    }

#if RLFN_BF16
    // The same in bf16, two inputs at a time.
    template <int STRIDE, int WIDE>
    __attribute__((always_inline)) void add(const bf16* rows, int inputs, const bf16* weights) {
        weights += column * LANES * 2;
        for (int k = 0; k < inputs; k += 2, rows += 2, weights += WIDE * LANES * 2) {
            Vector w[N];
            for (int n = 0; n < N; n++) w[n] = _mm512_castsi512_ps(_mm512_loadu_si512(weights + n * LANES * 2));
#pragma GCC unroll 16
            for (int m = 0; m < M; m++) {
                int32_t both;
                std::memcpy(&both, rows + m * STRIDE, 4);
                Vector a = _mm512_castsi512_ps(_mm512_set1_epi32(both));
#pragma GCC unroll 4
                for (int n = 0; n < N; n++) v[m][n] = _mm512_dpbf16_ps(v[m][n], (__m512bh)a, (__m512bh)w[n]);
            }
        }
    }
#endif
};

// Calls f(number of rows as a constant, first row) for groups of M rows, and once for what is left.
template <int M, class F>
__attribute__((always_inline)) inline void left_over(int first, int count, F&& f) {
    if constexpr (M > 0) {
        if (count == M)
            f(std::integral_constant<int, M>{}, first);
        else
            left_over<M - 1>(first, count, f);
    }
}

template <int M, class F>
__attribute__((always_inline)) inline void in_groups(int first, int last, F&& f) {
    for (; last - first >= M; first += M) f(std::integral_constant<int, M>{}, first);
    left_over<M - 1>(first, last - first, f);
}

// Rows first .. last times weights, N vectors wide: in(sums, row) adds to sums, which begin with the bias, and out(row,
// vector, sum) gets them.
template <int N, int FROM = 0, class In, class Out>
__attribute__((always_inline)) inline void products(int first, int last, const float* bias, In&& in, Out&& out) {
    constexpr int WIDE = panel(N - FROM);
    in_groups<ROWS<WIDE>>(
        first, last, [&](auto count, int row) __attribute__((always_inline)) {
            constexpr int M = decltype(count)::value;
            Sums<M, WIDE> sums(FROM, bias);
            in(sums, row);
#pragma GCC unroll 16
            for (int m = 0; m < M; m++)
#pragma GCC unroll 4
                for (int n = 0; n < WIDE; n++) out(row + m, FROM + n, sums.v[m][n]);
        });
    if constexpr (FROM + WIDE < N) products<N, FROM + WIDE>(first, last, bias, in, out);
}

}  // namespace rlfn
