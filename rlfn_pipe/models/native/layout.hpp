// What Python hands over, and how memory is divided. library.py has the same structures.
#pragma once

#include <algorithm>
#include <cstddef>

#include "gemm.hpp"
#include "winograd.hpp"

namespace rlfn {

constexpr float SLOPE = 0.05f;
constexpr int F16 = LANES;  // ESA's channels
constexpr int MOST_BLOCKS = 16;
constexpr int SQUARE = QUAD;      // what changed is known in squares of this side
constexpr int CELL = 8 * SQUARE;  // what is computed again, at least

struct Block {
    const bf16 *conv[3], *c5, *reduce, *conv2, *conv_f, *conv4;
    const float *conv_bias[3], *c5_bias, *reduce_bias, *conv2_bias, *conv_f_bias, *conv4_bias, *conv3, *conv3_bias;
};

struct Net {
    int32_t vectors, tail_vectors, pairs, mid_pairs, blocks, scale, tail_float;
    const float *head, *head_bias, *body_bias, *tail_bias;
    const bf16* body;
    const void* tail;
    const Block* block;
};

// Where the small map goes: for each row (column) of the picture two neighbouring cells of the map and their shares.
struct Stretch {
    const int32_t *row, *column;
    const float *row_share, *column_share, *border;
};

struct Job {
    int32_t height, width, threads, columns, rows;
    const float* picture;
    float* result;
    unsigned char *workspace, *memory;
    Stretch stretch;
};

struct Tile {
    int x0, x1, y0, y1;
};

inline size_t aligned(size_t bytes) { return (bytes + 255) & ~static_cast<size_t>(255); }

struct Plan {
    int h, w, h2, w2, h3, w3, columns, rows, quads, threads;
    explicit Plan(const Job& job)
        : h(job.height),
          w(job.width),
          h2((h - 3) / 2 + 1),
          w2((w - 3) / 2 + 1),
          h3((h2 - 7) / 3 + 1),
          w3((w2 - 7) / 3 + 1),
          columns(job.columns),
          rows(job.rows),
          threads(job.threads) {
        quads = (std::max((w + columns - 1) / columns, CELL) + QUAD - 1) / QUAD + 1 + 6;
    }
    int squares_down() const { return (h + SQUARE - 1) / SQUARE; }
    int squares_along() const { return (w + SQUARE - 1) / SQUARE; }
    size_t squares() const { return static_cast<size_t>(squares_down()) * squares_along(); }
    int tiles() const { return columns * rows; }
    Tile tile(int i) const {
        const int c = i % columns, r = i / columns;
        return {edge(c), c + 1 == columns ? w : edge(c + 1), static_cast<int>(int64_t{h} * r / rows),
                static_cast<int>(int64_t{h} * (r + 1) / rows)};
    }
    int edge(int c) const { return static_cast<int>(int64_t{w} * c / columns) / QUAD * QUAD; }
};

template <int NV>
struct Scratch {
    static constexpr int CS = NV * LANES;
    static size_t row(const Plan& p) { return aligned(sizeof(bf16) * PRODUCTS * p.quads * CS); }
    static size_t line(const Plan& p) { return aligned(sizeof(float) * p.quads * QUAD * CS); }
    static size_t sums() { return aligned(sizeof(float) * PRODUCTS * ROWS<NV> * CS); }
    static size_t wide(const Plan& p) {
        return aligned(sizeof(float) * (p.w + 18) * 9) + aligned(sizeof(float) * (p.w + 18) * F16 * 3);
    }
    static size_t zeros(const Plan& p) { return std::max(row(p), line(p)); }
    static size_t bytes(const Plan& p) { return 9 * row(p) + zeros(p) + 7 * line(p) + sums() + wide(p); }

    bf16 *ring[3][3], *nothing;
    float *x[4], *y[3], *sum, *rest;
    Scratch(unsigned char* at, const Plan& p) {
        auto take = [&](size_t bytes) {
            unsigned char* here = at;
            at += bytes;
            return here;
        };
        for (auto& three : ring)
            for (auto& one : three) one = reinterpret_cast<bf16*>(take(row(p)));
        nothing = reinterpret_cast<bf16*>(take(zeros(p)));
        for (auto& one : x) one = reinterpret_cast<float*>(take(line(p)));
        for (auto& one : y) one = reinterpret_cast<float*>(take(line(p)));
        sum = reinterpret_cast<float*>(take(sums()));
        rest = reinterpret_cast<float*>(take(wide(p)));
    }
};

}  // namespace rlfn
