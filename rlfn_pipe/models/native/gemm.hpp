// Products of short rows with packed weights: the inner loops of everything else. AVX-512 bf16.
//
// Channels are padded to vectors of 16. Weights lie as [tap][pair of inputs][vector of outputs][16][2] in bf16, so that
// one vdpbf16ps adds two inputs' shares to 16 outputs. A result's sums are made in one order, whatever stands beside
// it: bits do not depend on how a picture is cut.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace rlfn {

using bf16 = uint16_t;
constexpr int LANES = 16;

inline __m512 load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, __m512 v) { _mm512_storeu_ps(p, v); }
inline __m512 splat(float v) { return _mm512_set1_ps(v); }
inline __m512 widen(const bf16* p) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
inline __m256i narrow(__m512 v) { return (__m256i)_mm512_cvtneps_pbh(v); }
inline void store_narrow(bf16* p, __m512 v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v)); }
inline __m512 pair(const bf16* p) {
    int32_t both;
    std::memcpy(&both, p, 4);
    return _mm512_castsi512_ps(_mm512_set1_epi32(both));
}
inline __m512 dot(__m512 sum, __m512 a, const bf16* weights) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)_mm512_loadu_si512(weights));
}

// Rows of a product that fit the registers beside the weights.
template <int NV>
constexpr int ROWS = NV == 1   ? 16
                     : NV == 2 ? 12
                     : NV == 3 ? 8
                               : 6;

template <int M, int NV>
struct Sums {
    __m512 v[M][NV];

    void begin(const float* bias) {
        for (int n = 0; n < NV; n++) {
            __m512 b = bias ? load(bias + n * LANES) : _mm512_setzero_ps();
            for (int m = 0; m < M; m++) v[m][n] = b;
        }
    }

    // Adds rows of `pairs` pairs, STRIDE numbers apart, times weights.
    template <int STRIDE>
    __attribute__((always_inline)) void add(const bf16* rows, int pairs, const bf16* weights) {
        for (int k = 0; k < pairs; k++, rows += 2, weights += NV * LANES * 2) {
            __m512 w[NV];
            for (int n = 0; n < NV; n++) w[n] = _mm512_castsi512_ps(_mm512_loadu_si512(weights + n * LANES * 2));
#pragma GCC unroll 16
            for (int m = 0; m < M; m++) {
                __m512 a = pair(rows + m * STRIDE);
#pragma GCC unroll 4
                for (int n = 0; n < NV; n++) v[m][n] = _mm512_dpbf16_ps(v[m][n], (__m512bh)a, (__m512bh)w[n]);
            }
        }
    }

    // The same in float32: rows of `count` numbers, weights [number][vector][16].
    template <int STRIDE>
    __attribute__((always_inline)) void add(const float* rows, int count, const float* weights) {
        for (int k = 0; k < count; k++, rows += 1, weights += NV * LANES) {
            __m512 w[NV];
            for (int n = 0; n < NV; n++) w[n] = load(weights + n * LANES);
#pragma GCC unroll 16
            for (int m = 0; m < M; m++) {
                __m512 a = splat(rows[m * STRIDE]);
#pragma GCC unroll 4
                for (int n = 0; n < NV; n++) v[m][n] = _mm512_fmadd_ps(a, w[n], v[m][n]);
            }
        }
    }
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
inline void in_groups(int first, int last, F&& f) {
    for (; last - first >= M; first += M) f(std::integral_constant<int, M>{}, first);
    left_over<M - 1>(first, last - first, f);
}

// 1 / (1 + exp(-x)), to about 1e-4: a fraction of what is lost when x is rounded to bf16.
inline __m512 sigmoid(__m512 x) {
    // 2^t by its integer part and a polynomial for the rest (-0.5 .. 0.5).
    __m512 t = _mm512_mul_ps(x, splat(-1.44269504f));
    __m512 whole = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_sub_ps(t, whole);
    __m512 p = splat(9.6738e-3f);
    p = _mm512_fmadd_ps(p, r, splat(5.58767e-2f));
    p = _mm512_fmadd_ps(p, r, splat(2.402246e-1f));
    p = _mm512_fmadd_ps(p, r, splat(6.931471e-1f));
    p = _mm512_fmadd_ps(p, r, splat(1.f));
    return _mm512_rcp14_ps(_mm512_add_ps(_mm512_scalef_ps(p, whole), splat(1.f)));
}

}  // namespace rlfn
