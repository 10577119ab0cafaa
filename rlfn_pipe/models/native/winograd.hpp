// 3x3 convolutions by Winograd's F(4, 3): four outputs from six products instead of twelve, in each direction in which
// it is used. The points are 0, +-5/8, +-3/2 and infinity, which lose least (docs/performance.md).
//
// In bf16 it is used along rows. Inputs are transformed in float32 and rounded once, as soon as a row is made, so that
// the result is as close to float32 as that of a plain bf16 convolution. A row in transformed form is [six products]
// [quad of pixels][channel]. In float32 it is used along rows and columns, which takes a quarter of the
// multiplications; rows are kept as they are, and bands of four of them come out at a time.
#pragma once

#include "amx.hpp"

namespace rlfn {

constexpr float PA = 0.625f, PB = 1.5f;
constexpr float PA2 = PA * PA, PB2 = PB * PB;
constexpr int PRODUCTS = 6, QUAD = 4;

// Six inputs of a quad to the factors of its six products.
struct Factors {
    Vector v[PRODUCTS];
    __attribute__((always_inline)) Factors(Vector d0, Vector d1, Vector d2, Vector d3, Vector d4, Vector d5) {
        const Vector even_a = fnma(splat(PB2), d2, d4), odd_a = fnma(splat(PB2), d1, d3);
        const Vector even_b = fnma(splat(PA2), d2, d4), odd_b = fnma(splat(PA2), d1, d3);
        v[0] = fma(splat(PA2 * PB2), d0, fnma(splat(PA2 + PB2), d2, d4));
        v[1] = fma(splat(PA), odd_a, even_a);
        v[2] = fnma(splat(PA), odd_a, even_a);
        v[3] = fma(splat(PB), odd_b, even_b);
        v[4] = fnma(splat(PB), odd_b, even_b);
        v[5] = fma(splat(PA2 * PB2), d1, fnma(splat(PA2 + PB2), d3, d5));
    }
};

// Six products, summed over the inputs, to the four outputs of a quad.
struct Quad {
    Vector v[QUAD];
    __attribute__((always_inline)) Quad(Vector m0, Vector m1, Vector m2, Vector m3, Vector m4, Vector m5) {
        const Vector sa = m1 + m2, da = m1 - m2, sb = m3 + m4, db = m3 - m4;
        v[0] = sa + sb + m0;
        v[1] = fma(splat(PA), da, splat(PB) * db);
        v[2] = fma(splat(PA2), sa, splat(PB2) * sb);
        v[3] = fma(splat(PA2 * PA), da, fma(splat(PB2 * PB), db, m5));
    }
};

// Six vectors that lie STEP numbers apart, as a quad's inputs or products.
template <class Made, int STEP>
__attribute__((always_inline)) inline Made of_six(const float* p) {
    return Made(load(p), load(p + STEP), load(p + 2 * STEP), load(p + 3 * STEP), load(p + 4 * STEP),
                load(p + 5 * STEP));
}

#if RLFN_BF16

// Rows that come out at a time, and rows of an inner layer that are kept as pixels (1: none is, see convolve_on).
constexpr int BAND = 1, KEPT = 1;
// Whether the last layer is done so, too.
constexpr bool WINOGRAD_TAIL = false;
using Row = bf16;

// Quads that are computed together: with AMX many, since a product's weights come from the second-level cache each
// time.
#if RLFN_AMX
template <int N>
constexpr int GROUP = 5 * Tiles::ROWS;
#else
template <int N>
constexpr int GROUP = ROWS<N>;
#endif

template <int N>
constexpr size_t WORK = static_cast<size_t>(PRODUCTS) * GROUP<N>* N* LANES;

// A row in transformed form, of `quads` quads.
template <int N>
struct Transformed {
    static constexpr int CS = N * LANES;
    bf16* const row;
    const size_t quads;

#if RLFN_AMX
    // Each product's plane in two parts, so that what a tile register takes of a quad lies in one line of the cache.
    static constexpr int FIRST = Tiles::FIRST, REST = CS - FIRST;
    bf16* first(int s, int q) const { return row + s * quads * CS + static_cast<size_t>(q) * FIRST; }
    bf16* rest(int s, int q) const { return row + (s * CS + FIRST) * quads + static_cast<size_t>(q) * REST; }
    bf16* at(int s, int q, int n) const {
        return n < FIRST / LANES ? first(s, q) + n * LANES : rest(s, q) + n * LANES - FIRST;
    }
#else
    bf16* at(int s, int q, int n) const { return row + (s * quads + q) * CS + n * LANES; }
#endif

    // The factors of a quad's vectors n and, if there are two, n + 1.
    template <int COUNT>
    __attribute__((always_inline)) void put(int q, int n, const Factors (&f)[COUNT]) const {
        for (int s = 0; s < PRODUCTS; s++) {
            if constexpr (COUNT == 2)
                store(at(s, q, n), f[0].v[s], f[1].v[s]);
            else
                store(at(s, q, n), f[0].v[s]);
        }
    }
};

// Calls f(count as a constant, n) for vectors n .. n + count - 1, two at a time.
template <int N, class F>
__attribute__((always_inline)) inline void in_pairs(F&& f) {
    for (int n = 0; n + 1 < N; n += 2) f(std::integral_constant<int, 2>{}, n);
    if constexpr (N % 2) f(std::integral_constant<int, 1>{}, N - 1);
}

// Quads first .. last of a row of pixels (float32, channels last, zeros beyond the picture).
template <int N>
__attribute__((noinline)) void prepare(const float* pixels, bf16* row, int quads, int first, int last) {
    constexpr int CS = N * LANES;
    const Transformed<N> to{row, static_cast<size_t>(quads)};
    for (int q = first; q < last; q++)
        in_pairs<N>([&](auto count, int n) __attribute__((always_inline)) {
            const float* p = pixels + (QUAD * q - 1) * CS + n * LANES;
            if constexpr (count == 2)
                to.template put<2>(q, n, {of_six<Factors, CS>(p), of_six<Factors, CS>(p + LANES)});
            else
                to.template put<1>(q, n, {of_six<Factors, CS>(p)});
        });
}

// Calls f(begin, end) for groups of quads first .. last whose products, from three transformed rows, are in `work`,
// [product][quad of the group][channel].
template <int N, class F>
__attribute__((always_inline)) inline void multiply(const bf16* const rows[3], int quads, const bf16* weights,
                                                    int inputs, int first, int last, float* work, F&& f) {
    constexpr int CS = N * LANES, M = GROUP<N>;
    const size_t step = static_cast<size_t>(inputs) * N * LANES;
    auto row = [=](int k) { return Transformed<N>{const_cast<bf16*>(rows[k]), static_cast<size_t>(quads)}; };
#if RLFN_AMX
    const Tiles tiles(inputs);
#endif
    for (int begin = first; begin < last; begin += M) {
        const int end = last < begin + M ? last : begin + M;
        for (int s = 0; s < PRODUCTS; s++) {
            const bf16* w = weights + 3 * s * step;
            float* to = work + s * M * CS;
#if RLFN_AMX
            for (int q = begin; q < end; q += Tiles::ROWS) {
                tiles.begin<N>();
                for (int k = 0; k < 3; k++) {
                    tiles.add<N, Transformed<N>::FIRST>(row(k).first(s, q), w + k * step);
                    tiles.add_rest<N, Transformed<N>::REST>(row(k).rest(s, q),
                                                            w + k * step + Transformed<N>::FIRST * CS);
                }
                tiles.end<N>(to + (q - begin) * CS);
            }
#else
            products<N>(
                begin, end, nullptr,
                [&](auto& sums, int q) {
                    for (int k = 0; k < 3; k++) sums.template add<CS, N>(row(k).at(s, q, 0), inputs, w + k * step);
                },
                [&](int q, int n, Vector sum) { store(to + (q - begin) * CS + n * LANES, sum); });
#endif
        }
        f(begin, end);
    }
}

// Quads first .. last of an output row from three transformed input rows; `work` holds some sums in between.
// out(pixel, row of the band, vector, value) gets each result left of pixel `right`, bias missing; done(quad) is told
// up to where that has happened, often enough for what was written to be in the first-level cache.
template <int NI, int N, class F, class G>
inline void convolve(const bf16* const rows[BAND + 2], int quads, const bf16* weights, int inputs, int first, int last,
                     int right, float* work, F&& out, G&& done) {
    static_assert(NI == N);
    constexpr int CS = N * LANES, M = GROUP<N>;
    multiply<N>(rows, quads, weights, inputs, first, last, work, [&](int begin, int end) {
        for (int q = begin; q < end; q++) {
            for (int n = 0; n < N; n++) {
                const float* m = work + (q - begin) * CS + n * LANES;
                const auto quad = of_six<Quad, M * CS>(m);
                for (int i = 0; i < QUAD; i++)
                    if (QUAD * q + i < right) out(QUAD * q + i, 0, n, quad.v[i]);
            }
        }
        done(end);
    });
}

// The same where the results, as finish(vector, value) makes them, are another convolution's input, of which `to` gets
// quads `from` .. `until` in transformed form: pixels never leave the registers.
template <int N, class F>
inline void convolve_on(const bf16* const rows[3], int quads, const bf16* weights, int inputs, int first, int last,
                        int right, float* work, bf16* to, int from, int until, F&& finish) {
    constexpr int CS = N * LANES, M = GROUP<N>;
    const Transformed<N> made{to, static_cast<size_t>(quads)};
    // Of each vector the last pixels that were made: a quad's, and the one before.
    Vector seen[N][1 + QUAD] = {};
    multiply<N>(rows, quads, weights, inputs, first, last, work, [&](int begin, int end) {
        in_pairs<N>([&](auto count, int n) __attribute__((always_inline)) {
            constexpr int COUNT = decltype(count)::value;
            Vector last_ones[COUNT][1 + QUAD];
            for (int c = 0; c < COUNT; c++)
                for (int i = 0; i < 1 + QUAD; i++) last_ones[c][i] = seen[n + c][i];
            auto push = [&](int q, const Vector(&next)[COUNT]) __attribute__((always_inline)) {
                if (q < from || q >= until) return;
                auto factors = [&](const Vector(&v)[1 + QUAD], Vector beyond) __attribute__((always_inline)) {
                    return Factors(v[0], v[1], v[2], v[3], v[4], beyond);
                };
                if constexpr (COUNT == 2)
                    made.template put<2>(q, n, {factors(last_ones[0], next[0]), factors(last_ones[1], next[1])});
                else
                    made.template put<1>(q, n, {factors(last_ones[0], next[0])});
            };
            for (int q = begin; q < end; q++) {
                Vector values[COUNT][QUAD], next[COUNT];
                for (int c = 0; c < COUNT; c++) {
                    const auto quad = of_six<Quad, M * CS>(work + (q - begin) * CS + (n + c) * LANES);
                    for (int i = 0; i < QUAD; i++)
                        values[c][i] = QUAD * q + i < right ? finish(n + c, quad.v[i]) : Vector{};
                    next[c] = values[c][0];
                }
                push(q - 1, next);
                for (int c = 0; c < COUNT; c++) {
                    last_ones[c][0] = last_ones[c][QUAD];
                    for (int i = 0; i < QUAD; i++) last_ones[c][1 + i] = values[c][i];
                }
            }
            if (end == last) push(last - 1, {});
            for (int c = 0; c < COUNT; c++)
                for (int i = 0; i < 1 + QUAD; i++) seen[n + c][i] = last_ones[c][i];
        });
    });
}

#else

constexpr int BAND = QUAD, KEPT = 3 * BAND;
constexpr bool WINOGRAD_TAIL = true;
using Row = float;

// Squares of 4x4 pixels that are computed together: each product's weights are read once for all of them, and what lies
// between the steps of one row of products stays in the first-level cache.
constexpr int GROUP = 12, COLUMNS = QUAD * GROUP;

template <int N>
constexpr size_t WORK = static_cast<size_t>(PRODUCTS) * (2 * COLUMNS + 2 + 2 * GROUP) * N* LANES;

// Rows are transformed when they are read.
template <int N>
void prepare(const float*, float*, int, int, int) {}

// Squares first .. last of a band of four rows from six rows of pixels; the rest as above.
template <int NI, int N, class F, class G>
inline void convolve(const float* const rows[BAND + 2], int, const float* weights, int inputs, int first, int last,
                     int right, float* work, F&& out, G&& done) {
    constexpr int CI = NI * LANES, CO = N * LANES;
    constexpr int TALL = (COLUMNS + 2) * CI, SUMMED = COLUMNS * CO;
    float *tall = work,
          *factors = tall + PRODUCTS * TALL;  // [product along columns][pixel]; [product along rows][square]
    float *sums = factors + PRODUCTS * GROUP * CI,
          *summed = sums + PRODUCTS * GROUP * CO;  // the same for what comes out
    for (int begin = first; begin < last; begin += GROUP) {
        const int count = last < begin + GROUP ? last - begin : GROUP;
        const size_t at = static_cast<size_t>(QUAD * begin - 1) * CI;
        const float* in[PRODUCTS] = {rows[0] + at, rows[1] + at, rows[2] + at,
                                     rows[3] + at, rows[4] + at, rows[5] + at};
        for (int i = 0; i < (QUAD * count + 2) * CI; i += LANES) {
            const Factors f(load(in[0] + i), load(in[1] + i), load(in[2] + i), load(in[3] + i), load(in[4] + i),
                            load(in[5] + i));
#pragma GCC unroll 6
            for (int r = 0; r < PRODUCTS; r++) store(tall + r * TALL + i, f.v[r]);
        }
        for (int r = 0; r < PRODUCTS; r++) {
            for (int q = 0; q < count; q++)
                for (int n = 0; n < CI; n += LANES) {
                    const auto f = of_six<Factors, CI>(tall + r * TALL + QUAD * q * CI + n);
#pragma GCC unroll 6
                    for (int s = 0; s < PRODUCTS; s++) store(factors + (s * GROUP + q) * CI + n, f.v[s]);
                }
            for (int s = 0; s < PRODUCTS; s++) {
                const float *from = factors + s * GROUP * CI,
                            *w = weights + static_cast<size_t>(r * PRODUCTS + s) * inputs * CO;
                float* to = sums + s * GROUP * CO;
                products<N>(
                    0, count, nullptr, [&](auto& sum, int q) { sum.template add<CI, N>(from + q * CI, inputs, w); },
                    [&](int q, int n, Vector sum) { store(to + q * CO + n * LANES, sum); });
            }
            for (int q = 0; q < count; q++)
                for (int n = 0; n < CO; n += LANES) {
                    const auto quad = of_six<Quad, GROUP * CO>(sums + q * CO + n);
#pragma GCC unroll 4
                    for (int i = 0; i < QUAD; i++) store(summed + r * SUMMED + (QUAD * q + i) * CO + n, quad.v[i]);
                }
        }
        const int wide = right - QUAD * begin < QUAD * count ? right - QUAD * begin : QUAD * count;
        for (int x = 0; x < wide; x++)
            for (int n = 0; n < N; n++) {
                const auto quad = of_six<Quad, SUMMED>(summed + x * CO + n * LANES);
#pragma GCC unroll 4
                for (int i = 0; i < QUAD; i++) out(QUAD * begin + x, i, n, quad.v[i]);
            }
        done(begin + count);
    }
}

#endif

}  // namespace rlfn
