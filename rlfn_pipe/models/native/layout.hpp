// What Python hands over, and how memory is divided. library.py has the same structures.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

#include "gemm.hpp"
#include "winograd.hpp"

namespace rlfn {

constexpr float SLOPE = 0.05f;
constexpr int F16 = 16;  // ESA's channels
constexpr int EV = F16 / LANES;
constexpr int MOST_BLOCKS = 16;
constexpr int SQUARE = QUAD;      // what changed is known in squares of this side
constexpr int CELL = 8 * SQUARE;  // changes within a cell are computed again together

struct Block {
    const Kept *conv[3], *c5, *reduce, *conv2, *conv_f, *conv4;
    const float *conv_bias[3], *c5_bias, *reduce_bias, *conv2_bias, *conv_f_bias, *conv4_bias, *conv3, *conv3_bias;
};

struct Net {
    int32_t vectors, inputs, mid_inputs, blocks, scale, tail_float;
    const float *head, *head_bias, *body_bias, *tail_bias;
    const Kept* body;
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
        // An even number: what holds a row's planes begins with a line of the cache.
        quads = ((std::max((w + columns - 1) / columns, CELL) + QUAD - 1) / QUAD + 1 + 6 + 1) / 2 * 2;
    }
    int squares_down() const { return (h + SQUARE - 1) / SQUARE; }
    int squares_along() const { return (w + SQUARE - 1) / SQUARE; }
    size_t squares() const { return static_cast<size_t>(squares_down()) * squares_along(); }
    int tiles() const { return columns * rows; }
    // Rows of tiles that may be in hand beyond the first that is not done: no thread waits as long as all go on.
    int spread() const { return 1 + (threads - 1) / columns; }
    // By how many rows a block's sums lie off those that it reads, so that none is written upon before it has been
    // read: the rows in hand and the 3 convolutions' reach. All of them where that is no more.
    int lag() const {
        const int tallest = (h + rows - 1) / rows + BAND;
        return std::min(h, (spread() + 1) * tallest + 3 * BAND);
    }
    Tile tile(int i) const {
        const int c = i % columns, r = i / columns;
        return {edge(w, c, columns, QUAD), edge(w, c + 1, columns, QUAD), edge(h, r, rows, BAND),
                edge(h, r + 1, rows, BAND)};
    }
    // Where part i of `count` begins: a multiple of `unit`, or the end.
    static int edge(int side, int i, int count, int unit) {
        return i == count ? side : static_cast<int>(int64_t{side} * i / count) / unit * unit;
    }
};

// Rows of tiles, one after the other: a tile waits while what it would write upon may still be read.
class Turns {
   public:
    explicit Turns(const Plan& p) : columns_(p.columns), spread_(p.lag() == p.h ? p.rows : p.spread()), done_(p.rows) {}
    void begin() {
        for (auto& count : done_) count.store(0, std::memory_order_relaxed);
    }
    void wait(int tile) const {
        for (int row = 0; row < tile / columns_ - spread_; row++)
            for (int spins = 0; done_[row].load(std::memory_order_acquire) < columns_; spins++)
                spins < SPINS ? _mm_pause() : std::this_thread::yield();
    }
    void finish(int tile) { done_[tile / columns_].fetch_add(1, std::memory_order_release); }

   private:
    static constexpr int SPINS = 1000;
    int columns_, spread_;
    std::vector<std::atomic<int>> done_;
};

// What one thread works with. Rows of pixels are float32 and begin at a tile's left edge; which of them are there at a
// time is known by their number.
template <int NV>
struct Scratch {
    static constexpr int CS = NV * LANES, X = 4 * BAND, LAST = 3 * BAND, Y = 2 * KEPT > LAST ? 2 * KEPT : LAST;
    static size_t row(const Plan& p) { return KEPT > 1 ? 0 : aligned(sizeof(Row) * PRODUCTS * p.quads * CS); }
    static size_t line(const Plan& p) { return aligned(sizeof(float) * p.quads * QUAD * CS); }
    static size_t sums() { return aligned(sizeof(float) * WORK<NV>); }
    static size_t wide(const Plan& p) {
        return aligned(sizeof(float) * (p.w + 18) * 9) + aligned(sizeof(float) * (p.w + 18) * F16 * 3);
    }
    static size_t zeros(const Plan& p) { return std::max(row(p), line(p)); }
    static size_t bytes(const Plan& p) { return 9 * row(p) + zeros(p) + (X + Y) * line(p) + sums() + wide(p); }

    float *sum, *rest;
    Row* nothing;

    Scratch(unsigned char* at, const Plan& p) {
        auto take = [&](size_t bytes) {
            unsigned char* here = at;
            at += bytes;
            return here;
        };
        for (auto& three : rows_)
            for (auto& one : three) one = reinterpret_cast<Row*>(take(row(p)));
        nothing = reinterpret_cast<Row*>(take(zeros(p)));
        for (auto& one : x_) one = reinterpret_cast<float*>(take(line(p)));
        for (auto& one : y_) one = reinterpret_cast<float*>(take(line(p)));
        sum = reinterpret_cast<float*>(take(sums()));
        rest = reinterpret_cast<float*>(take(wide(p)));
    }

    // Row y of a block's input, of what its convolution `stage` (0, 1) gives, and of the last layer's input.
    float* x(int y) const { return x_[y % X]; }
    float* inner(int stage, int y) const { return y_[stage * KEPT + y % KEPT]; }
    float* last(int y) const { return y_[y % LAST]; }

    // Row y of the input of convolution `stage`, as it reads it.
    Row* row(int stage, int y) const {
        if constexpr (KEPT > 1)
            return stage == 0 ? x(y) : inner(stage - 1, y);
        else
            return rows_[stage][y % 3];
    }

    void clear(const Plan& p) const {
        for (float* line : x_) std::memset(line, 0, Scratch::line(p));
        for (float* line : y_) std::memset(line, 0, Scratch::line(p));
        std::memset(nothing, 0, zeros(p));
    }

   private:
    Row* rows_[3][3];
    float *x_[X], *y_[Y];
};

}  // namespace rlfn
