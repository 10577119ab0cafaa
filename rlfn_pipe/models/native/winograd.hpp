// 3x3 convolutions by Winograd's F(4, 3) along rows: four outputs from six products instead of twelve.
//
// The points are 0, +-5/8, +-3/2 and infinity. Inputs are transformed in float32 and rounded to bf16 once, so that the
// result is as close to float32 as that of a plain bf16 convolution (docs/performance.md). A row in transformed form is
// [six products][quad of pixels][channel].
#pragma once

#include "gemm.hpp"

namespace rlfn {

constexpr float PA = 0.625f, PB = 1.5f;
constexpr float PA2 = PA * PA, PB2 = PB * PB;
constexpr int PRODUCTS = 6, QUAD = 4;

// Quads first .. last of a row of pixels (float32, channels last, zeros beyond the picture).
template <int NV>
__attribute__((noinline)) void to_products(const float* pixels, bf16* row, int quads, int first, int last) {
    constexpr int CS = NV * LANES;
    const size_t plane = static_cast<size_t>(quads) * CS;
    for (int q = first; q < last; q++) {
        for (int n = 0; n < NV; n++) {
            const float* p = pixels + (QUAD * q - 1) * CS + n * LANES;
            bf16* to = row + q * CS + n * LANES;
            __m512 d0 = load(p), d1 = load(p + CS), d2 = load(p + 2 * CS);
            __m512 d3 = load(p + 3 * CS), d4 = load(p + 4 * CS), d5 = load(p + 5 * CS);
            __m512 v0 = _mm512_fmadd_ps(splat(PA2 * PB2), d0, _mm512_fnmadd_ps(splat(PA2 + PB2), d2, d4));
            __m512 v5 = _mm512_fmadd_ps(splat(PA2 * PB2), d1, _mm512_fnmadd_ps(splat(PA2 + PB2), d3, d5));
            __m512 even_a = _mm512_fnmadd_ps(splat(PB2), d2, d4);
            __m512 odd_a = _mm512_fnmadd_ps(splat(PB2), d1, d3);
            __m512 even_b = _mm512_fnmadd_ps(splat(PA2), d2, d4);
            __m512 odd_b = _mm512_fnmadd_ps(splat(PA2), d1, d3);
            store_narrow(to, v0);
            store_narrow(to + plane, _mm512_fmadd_ps(splat(PA), odd_a, even_a));
            store_narrow(to + 2 * plane, _mm512_fnmadd_ps(splat(PA), odd_a, even_a));
            store_narrow(to + 3 * plane, _mm512_fmadd_ps(splat(PB), odd_b, even_b));
            store_narrow(to + 4 * plane, _mm512_fnmadd_ps(splat(PB), odd_b, even_b));
            store_narrow(to + 5 * plane, v5);
        }
    }
}

// Quads first .. last of an output row from three transformed input rows; `sums` holds some of them in between.
// out(pixel, vector, value) gets each result, bias missing; done(quad) is told up to where that has happened, often
// enough for what was written to be in the first-level cache.
template <int NV, class F, class G>
inline void convolve(const bf16* const rows[3], int quads, const bf16* weights, int pairs, int first, int last,
                     float* sums, F&& out, G&& done) {
    constexpr int CS = NV * LANES, M = ROWS<NV>;
    const size_t plane = static_cast<size_t>(quads) * CS, step = static_cast<size_t>(pairs) * NV * LANES * 2;
    for (int begin = first; begin < last; begin += M) {
        const int end = last < begin + M ? last : begin + M;
        for (int s = 0; s < PRODUCTS; s++) {
            const bf16* w = weights + 3 * s * step;
            float* to = sums + s * M * CS;
            in_groups<M>(begin, end, [&](auto count, int q) {
                Sums<decltype(count)::value, NV> sum;
                sum.begin(nullptr);
                const size_t at = s * plane + static_cast<size_t>(q) * CS;
                for (int k = 0; k < 3; k++) sum.template add<CS>(rows[k] + at, pairs, w + k * step);
                for (int m = 0; m < decltype(count)::value; m++)
                    for (int n = 0; n < NV; n++) store(to + (q - begin + m) * CS + n * LANES, sum.v[m][n]);
            });
        }
        for (int q = begin; q < end; q++) {
            for (int n = 0; n < NV; n++) {
                const float* m = sums + (q - begin) * CS + n * LANES;
                __m512 m0 = load(m), m1 = load(m + M * CS), m2 = load(m + 2 * M * CS);
                __m512 m3 = load(m + 3 * M * CS), m4 = load(m + 4 * M * CS), m5 = load(m + 5 * M * CS);
                __m512 sa = _mm512_add_ps(m1, m2), da = _mm512_sub_ps(m1, m2);
                __m512 sb = _mm512_add_ps(m3, m4), db = _mm512_sub_ps(m3, m4);
                out(QUAD * q, n, _mm512_add_ps(_mm512_add_ps(sa, sb), m0));
                out(QUAD * q + 1, n, _mm512_fmadd_ps(splat(PA), da, _mm512_mul_ps(splat(PB), db)));
                out(QUAD * q + 2, n, _mm512_fmadd_ps(splat(PA2), sa, _mm512_mul_ps(splat(PB2), sb)));
                out(QUAD * q + 3, n, _mm512_fmadd_ps(splat(PA2 * PA), da, _mm512_fmadd_ps(splat(PB2 * PB), db, m5)));
            }
        }
        done(end);
    }
}

}  // namespace rlfn
