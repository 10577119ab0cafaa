// Vectors of float32 (RLFN_WIDE 1: AVX-512, else AVX2 and FMA), and the two number formats in which layers are kept:
// bf16 (RLFN_BF16 1, AVX-512 bf16) and float32. All that knows an instruction set is here and in gemm.hpp. Float32 has
// the same bits by either vectors: each step rounds alike, and sums are made in one order.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace rlfn {

using bf16 = uint16_t;

#if RLFN_WIDE

#define RLFN_V(name) _mm512_##name
using Vector = __m512;
using Bits = __m512i;
constexpr int LANES = 16;

inline Vector whole(Vector v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline bool differ(Vector a, Vector b) {
    return _mm512_cmpneq_epi32_mask(_mm512_castps_si512(a), _mm512_castps_si512(b)) != 0;
}

#else

#define RLFN_V(name) _mm256_##name
using Vector = __m256;
using Bits = __m256i;
constexpr int LANES = 8;

inline Vector whole(Vector v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline bool differ(Vector a, Vector b) {
    const Bits others = _mm256_xor_si256(_mm256_castps_si256(a), _mm256_castps_si256(b));
    return !_mm256_testz_si256(others, others);
}

#endif

inline Vector load(const float* p) { return RLFN_V(loadu_ps)(p); }
inline void store(float* p, Vector v) { RLFN_V(storeu_ps)(p, v); }
inline Vector splat(float v) { return RLFN_V(set1_ps)(v); }
inline Bits splat(int32_t v) { return RLFN_V(set1_epi32)(v); }
// a b + c and c - a b, rounded once.
inline Vector fma(Vector a, Vector b, Vector c) { return RLFN_V(fmadd_ps)(a, b, c); }
inline Vector fnma(Vector a, Vector b, Vector c) { return RLFN_V(fnmadd_ps)(a, b, c); }
// The second operand where either is not a number.
inline Vector most(Vector a, Vector b) { return RLFN_V(max_ps)(a, b); }
inline Vector least(Vector a, Vector b) { return RLFN_V(min_ps)(a, b); }
// 2^v for whole numbers from -126 to 126.
inline Vector power_of_two(Vector v) {
    return (Vector)RLFN_V(slli_epi32)(RLFN_V(add_epi32)(RLFN_V(cvtps_epi32)(v), splat(127)), 23);
}

// Puts a vector into its place; whether the bits there are others now.
inline bool replace(float* place, Vector made) {
    const bool others = differ(made, load(place));
    store(place, made);
    return others;
}

#if RLFN_BF16

using Kept = bf16;

inline Vector load(const bf16* p) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
inline void store(bf16* p, Vector v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(v));
}
// A vector and as many zeros.
inline void store_wide(bf16* p, Vector v) {
    _mm512_storeu_si512(p, _mm512_zextsi256_si512((__m256i)_mm512_cvtneps_pbh(v)));
}
inline void copy_wide(bf16* p, const bf16* from) {
    _mm512_storeu_si512(p, _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}
// Both, one behind the other.
inline void store(bf16* p, Vector v, Vector next) { _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(next, v)); }
inline bool replace(bf16* place, Vector value) {
    const __m256i made = (__m256i)_mm512_cvtneps_pbh(value);
    auto* to = reinterpret_cast<__m256i*>(place);
    const bool others = _mm256_cmpneq_epi16_mask(made, _mm256_loadu_si256(to));
    _mm256_storeu_si256(to, made);
    return others;
}

// Short as they are, layers settle by themselves.
inline Vector settle(Vector v) { return v; }

// 1 / (1 + exp(-x)), to about 1e-4: a fraction of what is lost when x is rounded to bf16. x times EXPONENT goes in.
constexpr float EXPONENT = -1.44269504f;
inline Vector sigmoid_of_exponent(Vector t) {
    // 2^t by a polynomial for what t is above a whole number (0 .. 1), which scalef goes by.
    const Vector r = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    Vector p = splat(0.0780245212f);
    p = fma(p, r, splat(0.226067158f));
    p = fma(p, r, splat(0.69583354f));
    p = fma(p, r, splat(0.999925219f));
    return _mm512_rcp14_ps(_mm512_scalef_ps(p, t) + splat(1.f));
}
inline Vector sigmoid(Vector x) { return sigmoid_of_exponent(x * splat(EXPONENT)); }

#else

using Kept = float;

// Rounded to so many significant bits that a change elsewhere in the picture ends where it no longer matters, and is
// not computed on (changes.hpp); still 109 dB from float64.
constexpr int SETTLED = 14;
inline Vector settle(Vector v) {
    constexpr int AWAY = 24 - SETTLED;
    return (Vector)(RLFN_V(add_epi32)((Bits)v, splat((1 << AWAY) >> 1)) & splat(-(1 << AWAY)));
}

// 1 / (1 + exp(-x)), to about 1e-7.
inline Vector sigmoid(Vector x) {
    // 2^t by its integer part and the series of exp for the rest (-0.5 .. 0.5). Not a number stays so.
    Vector t = most(splat(-126.f), least(splat(126.f), x * splat(-1.44269504f))), n = whole(t);
    Vector r = (t - n) * splat(0.693147181f);
    Vector p = splat(1.f / 720);
    p = fma(p, r, splat(1.f / 120));
    p = fma(p, r, splat(1.f / 24));
    p = fma(p, r, splat(1.f / 6));
    p = fma(p, r, splat(0.5f));
    p = fma(p, r, splat(1.f));
    p = fma(p, r, splat(1.f));
    return splat(1.f) / fma(p, power_of_two(n), splat(1.f));
}

#endif

#undef RLFN_V

}  // namespace rlfn
