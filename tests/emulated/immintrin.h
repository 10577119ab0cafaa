// The AVX-512 and AMX instructions that the compiled network uses, in the compiler's own vectors: found before
// the system's header, so that its code is tried on processors that lack them. Products and sums are rounded as the real
// ones round them; the estimate of a reciprocal is exact here and one of 14 bits there.
#pragma once
#include_next <immintrin.h>

#include <sys/syscall.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace emulated {

typedef float F __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef uint32_t U __attribute__((vector_size(64)));
typedef uint16_t H __attribute__((vector_size(32)));

template <class To, class From>
inline To as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}
template <class V>
inline V load(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof(v));
    return v;
}
template <class V>
inline void store(void* p, V v) {
    std::memcpy(p, &v, sizeof(v));
}

inline F splat(float v) { return v - F{}; }
inline F fma(F a, F b, F c) {
    F r;
    for (int i = 0; i < 16; i++) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return r;
}
// The second operand where either is not a number, as the instruction.
inline F max(F a, F b) { return as<F>((I)(a > b) & as<I>(a) | ~(I)(a > b) & as<I>(b)); }
inline F min(F a, F b) { return as<F>((I)(a < b) & as<I>(a) | ~(I)(a < b) & as<I>(b)); }
inline F round(F a) {
    F r;
    for (int i = 0; i < 16; i++) r[i] = std::nearbyint(a[i]);
    return r;
}
// What is above the whole number below; the powers of two of that number.
inline F above_floor(F a) {
    F r;
    for (int i = 0; i < 16; i++) r[i] = std::isinf(a[i]) ? 0.f : a[i] - std::floor(a[i]);
    return r;
}
inline F scale(F a, F by) {
    F r;
    for (int i = 0; i < 16; i++) r[i] = a[i] * std::exp2(std::floor(by[i]));
    return r;
}
inline __m256i narrow(F v) {
    const U bits = as<U>(v), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const U quiet = (bits >> 16) | 0x40, nan = (U)(v != v);
    return as<__m256i>(__builtin_convertvector((nan & quiet) | (~nan & rounded), H));
}
// Two vectors, the second one's numbers first; one and as many zeros.
inline U join(__m256i low, __m256i high) {
    U r;
    std::memcpy(&r, &low, sizeof(low));
    std::memcpy(reinterpret_cast<char*>(&r) + sizeof(low), &high, sizeof(high));
    return r;
}
// Two products a lane; numbers too small for a full mantissa count as zero.
inline F dot(F sum, F a, F b) {
    const U x = as<U>(a), y = as<U>(b);
    const F even = as<F>(x << 16) * as<F>(y << 16), odd = as<F>(x & 0xffff0000u) * as<F>(y & 0xffff0000u);
    return sum + even + odd;
}
template <class V>
inline uint32_t differ(V a, V b) {
    return std::memcmp(&a, &b, sizeof(a)) != 0;
}

// Tile registers. What the processor refuses ends the program.
struct Tile {
    int rows = 0, bytes = 0;
    unsigned char data[16][64];
};
struct Config {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
};
inline thread_local Tile tiles[8];
inline thread_local bool configured = false;
inline void need(bool fine) {
    if (!fine) std::abort();
}
inline void configure(const void* at) {
    Config c;
    std::memcpy(&c, at, sizeof(c));
    need(c.palette == 1 && c.start == 0);
    for (auto r : c.reserved) need(r == 0);
    for (int i = 0; i < 16; i++) need(c.bytes[i] <= (i < 8 ? 64 : 0) && c.rows[i] <= (i < 8 ? 16 : 0));
    for (int i = 0; i < 8; i++) {
        need((c.bytes[i] == 0) == (c.rows[i] == 0));
        tiles[i].rows = c.rows[i], tiles[i].bytes = c.bytes[i];
        std::memset(tiles[i].data, 0, sizeof(tiles[i].data));
    }
    configured = true;
}
inline void release() { configured = false; }
inline Tile& tile(int i) {
    need(configured && tiles[i].rows > 0);
    return tiles[i];
}
inline void fill(int i, const void* from, long stride) {
    Tile& t = tile(i);
    std::memset(t.data, 0, sizeof(t.data));
    for (int r = 0; r < t.rows; r++)
        std::memcpy(t.data[r], static_cast<const char*>(from) + r * stride, static_cast<size_t>(t.bytes));
}
inline void spill(int i, void* to, long stride) {
    const Tile& t = tile(i);
    for (int r = 0; r < t.rows; r++)
        std::memcpy(static_cast<char*>(to) + r * stride, t.data[r], static_cast<size_t>(t.bytes));
}
inline void clear(int i) { std::memset(tile(i).data, 0, sizeof(Tile::data)); }
// Even and odd inputs are summed apart, and both added to what was there.
inline void multiply(int sums, int rows, int weights) {
    Tile &c = tile(sums), &a = tile(rows), &b = tile(weights);
    need(sums != rows && sums != weights && rows != weights);
    need(c.rows == a.rows && c.bytes == b.bytes && a.bytes == 4 * b.rows && a.bytes % 4 == 0);
    for (int m = 0; m < c.rows; m++) {
        F even{}, odd{};
        for (int k = 0; k < b.rows; k++) {
            const U x = load<uint32_t>(a.data[m] + 4 * k) - U{}, y = load<U>(b.data[k]);
            even += as<F>(x << 16) * as<F>(y << 16);
            odd += as<F>(x & 0xffff0000u) * as<F>(y & 0xffff0000u);
        }
        store(c.data[m], load<F>(c.data[m]) + (even + odd));
    }
}

}  // namespace emulated

// The names that vector.hpp and gemm.hpp use.
#define __m512 emulated::F
#define __m512i emulated::U
#define __m512bh emulated::F
#define _mm512_loadu_ps(p) emulated::load<emulated::F>(p)
#define _mm512_storeu_ps(p, v) emulated::store(p, v)
#define _mm512_loadu_si512(p) emulated::load<emulated::U>(p)
#define _mm512_set1_ps(v) emulated::splat(v)
#define _mm512_set1_epi32(v) (static_cast<uint32_t>(v) - emulated::U{})
#define _mm512_castsi512_ps(v) emulated::as<emulated::F>(v)
#define _mm512_castps_si512(v) emulated::as<emulated::U>(v)
#define _mm512_fmadd_ps(a, b, c) emulated::fma(a, b, c)
#define _mm512_fnmadd_ps(a, b, c) emulated::fma(-(a), b, c)
#define _mm512_max_ps(a, b) emulated::max(a, b)
#define _mm512_min_ps(a, b) emulated::min(a, b)
#define _mm512_add_epi32(a, b) ((a) + (b))
#define _mm512_and_si512(a, b) ((a) & (b))
#define _mm512_cvtps_epi32(a) emulated::as<emulated::U>(__builtin_convertvector(emulated::round(a), emulated::I))
#define _mm512_roundscale_ps(a, mode) emulated::round(a)
#define _mm512_scalef_ps(a, b) emulated::scale(a, b)
#define _mm512_reduce_ps(a, mode) emulated::above_floor(a)
#define _mm512_rcp14_ps(a) (1.f / (a))
#define _mm512_cvtepu16_epi32(v) __builtin_convertvector(emulated::as<emulated::H>(v), emulated::U)
#define _mm512_slli_epi32(v, bits) ((v) << (bits))
#define _mm512_cvtneps_pbh(v) emulated::narrow(v)
#define _mm512_cvtne2ps_pbh(a, b) emulated::join(emulated::narrow(b), emulated::narrow(a))
#define _mm512_zextsi256_si512(v) emulated::join(v, _mm256_setzero_si256())
#define _mm512_storeu_si512(p, v) emulated::store(p, v)
#define _mm512_dpbf16_ps(sum, a, b) emulated::dot(sum, a, b)
#define _mm512_cmpneq_epi32_mask(a, b) emulated::differ(a, b)
#define _mm256_cmpneq_epi16_mask(a, b) emulated::differ(a, b)

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(at) emulated::configure(at)
#define _tile_release() emulated::release()
#define _tile_loadd(tile, from, stride) emulated::fill(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated::spill(tile, to, stride)
#define _tile_zero(tile) emulated::clear(tile)
#define _tile_dpbf16ps(sums, rows, weights) emulated::multiply(sums, rows, weights)
// Nobody has to be asked for them.
#define syscall(...) 0
