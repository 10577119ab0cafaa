// Quantised Y'CbCr planes to a float32 RGB picture and back: what rlfn_pipe/engine/colour.py does in many passes, row
// by row. Every number is made by the same steps in the same order, whatever the vectors: libraries give equal bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "pool.hpp"

namespace rlfn {

constexpr int MOST_TAPS = 12;

// Weighted sums of `count` neighbours, the first of them `first` away.
struct Taps {
    int32_t first, count;
    float weight[MOST_TAPS];
};

// `half_x`, `half_y`: chroma has half the columns (rows). Code values of `bytes` each, 0 .. `top`. `excess`, if any, is
// a picture `scale` times smaller that is enlarged bilinearly and added to `rgb`.
struct Planes {
    int32_t height, width, threads, bytes, half_x, half_y, scale;
    float top, red, green, blue, luma_gain, luma_offset, cb_gain, cr_gain, chroma_offset;
    Taps along, down;
    const float *rgb, *excess;
    void *y, *cb, *cr;
};

// The other way. Filters of even and of odd places; rows of luma and of chroma lie `luma_step` and `chroma_step` bytes
// apart. Red is luma and `red` of Cr, green `green[0]` of Cb and `green[1]` of Cr, blue `blue` of Cb.
struct Samples {
    int32_t height, width, threads, bytes, half_x, half_y;
    float black, luma_gain, zero, chroma_gain, red, green[2], blue;
    Taps along[2], down[2];
    int64_t luma_step, chroma_step;
    const void *y, *cb, *cr;
    float* rgb;
};

// to[x] = the sum of from[k][x] * weight[k], in order.
template <int COUNT>
__attribute__((noinline)) void weigh(const float* const* from, const float* weight, float* __restrict to, int width) {
    const float* rows[COUNT];
    for (int k = 0; k < COUNT; k++) rows[k] = from[k];
    for (int x = 0; x < width; x++) {
        float sum = rows[0][x] * weight[0];
#pragma GCC unroll 12
        for (int k = 1; k < COUNT; k++) sum += rows[k][x] * weight[k];
        to[x] = sum;
    }
}

template <int COUNT = MOST_TAPS>
void weigh(int count, const float* const* from, const float* weight, float* to, int width) {
    if constexpr (COUNT > 1)
        if (count < COUNT) return weigh<COUNT - 1>(count, from, weight, to, width);
    weigh<COUNT>(from, weight, to, width);
}

// The last rows of something, by their number.
class Ring {
   public:
    Ring(int rows, size_t step) : rows_(rows), step_(step), values_(rows * step) {}
    float* operator[](int row) { return values_.data() + (row % rows_ + rows_) % rows_ * step_; }

   private:
    const int rows_;
    const size_t step_;
    std::vector<float> values_;
};

inline int clamped(int at, int count) { return std::min(std::max(at, 0), count - 1); }

// Pixels beyond either end of a row that filters may read.
constexpr int MARGIN = MOST_TAPS;

// Calls f(first, last) for bands of `rows` rows.
template <class F>
void in_bands(Pool& pool, int threads, int rows, F&& f) {
    constexpr int HIGH = 32;
    pool.run(threads, (rows + HIGH - 1) / HIGH, [&](int i, int) { f(i * HIGH, std::min(rows, (i + 1) * HIGH)); });
}

class Packer {
   public:
    explicit Packer(const Planes& planes)
        : p_(planes),
          width_((planes.width + planes.half_x) >> planes.half_x),
          height_((planes.height + planes.half_y) >> planes.half_y),
          line_(width_ + 2 * MARGIN) {}

    void run(Pool& pool) const {
        in_bands(pool, p_.threads, height_, [&](int first, int last) { band(first, last); });
    }

   private:
    // Chroma rows first .. last, and the luma rows that lie beside them.
    void band(int first, int last) const {
        const int step = 1 + p_.half_y, taps = p_.down.count;
        const int luma_end = last == height_ ? p_.height : last * step;
        Ring narrow[2] = {{taps, static_cast<size_t>(width_)}, {taps, static_cast<size_t>(width_)}};
        std::vector<float> split(2 * line_), sum(width_), luma(p_.width);
        std::vector<float> room(p_.excess ? 3 * static_cast<size_t>(p_.width) + p_.width / p_.scale + 2 : 0);
        int next = first * step + p_.down.first, luma_row = first * step;
        for (int row = first; row < last; row++) {
            const int start = row * step + p_.down.first;
            for (next = std::max(next, start); next < start + taps; next++) {
                const Channels in = channels(clamped(next, p_.height), room.data());
                luma_line(in, luma.data());
                for (int c = 0; c < 2; c++) chroma_line(in.rgb[c ? 0 : 2], luma.data(), split.data(), narrow[c][next]);
                if (next == luma_row && next < luma_end)
                    put(p_.y, next, p_.width, luma.data(), p_.luma_gain, p_.luma_offset), luma_row++;
            }
            for (int c = 0; c < 2; c++) {
                const float* from[MOST_TAPS];
                for (int k = 0; k < taps; k++) from[k] = narrow[c][start + k];
                weigh(taps, from, p_.down.weight, sum.data(), width_);
                put(c ? p_.cr : p_.cb, row, width_, sum.data(), c ? p_.cr_gain : p_.cb_gain, p_.chroma_offset);
            }
        }
        // The filter of the last rows may end before their luma.
        for (; luma_row < luma_end; luma_row++) {
            luma_line(channels(luma_row, room.data()), luma.data());
            put(p_.y, luma_row, p_.width, luma.data(), p_.luma_gain, p_.luma_offset);
        }
    }

    // A row of the picture.
    struct Channels {
        const float* rgb[3];
    };

    // Row y; `room` is for the sum where there is something to add.
    Channels channels(int y, float* room) const {
        Channels made;
        for (int c = 0; c < 3; c++) {
            made.rgb[c] = p_.rgb + (static_cast<size_t>(c) * p_.height + y) * p_.width;
            if (!p_.excess) continue;
            float* sum = room + static_cast<size_t>(c) * p_.width;
            if (add(made.rgb[c], c, y, room + static_cast<size_t>(3) * p_.width + 1, sum)) made.rgb[c] = sum;
        }
        return made;
    }

    // The two neighbours of place i of an enlarged axis, by the first one and the second one's share.
    struct Between {
        int first;
        float share;
        Between(int i, int scale) {
            const float at = (i + 0.5f) / scale - 0.5f;
            first = static_cast<int>(std::floor(at));
            share = at - first;
        }
    };

    // A channel's row y with the excess; false, and nothing written, where that is zero. `low` has room for a row of
    // the excess and a pixel on either side.
    bool add(const float* row, int c, int y, float* low, float* sum) const {
        const int s = p_.scale, w = p_.width / s, h = p_.height / s;
        const Between rows(y, s);
        auto line = [&](int at) { return p_.excess + (static_cast<size_t>(c) * h + clamped(at, h)) * w; };
        const float *above = line(rows.first), *below = line(rows.first + 1);
        bool any = false;
        for (int x = 0; x < w; x++) {
            low[x] = above[x] * (1.f - rows.share) + below[x] * rows.share;
            any |= low[x] != 0.f;
        }
        if (!any) return false;
        low[-1] = low[0], low[w] = low[w - 1];
        std::memcpy(sum, row, sizeof(float) * p_.width);
        for (int i = 0; i < s; i++) {
            const Between columns(i, s);
            const float* from = low + columns.first;
            for (int x = 0; x < w; x++) sum[x * s + i] += from[x] * (1.f - columns.share) + from[x + 1] * columns.share;
        }
        return true;
    }

    void luma_line(const Channels& in, float* __restrict luma) const {
        const float *r = in.rgb[0], *g = in.rgb[1], *b = in.rgb[2];
        for (int x = 0; x < p_.width; x++) luma[x] = r[x] * p_.red + g[x] * p_.green + b[x] * p_.blue;
    }

    // A row of one chroma at its own width. `split` holds two rows of samples, the even and the odd ones.
    void chroma_line(const float* __restrict in, const float* __restrict luma, float* __restrict split,
                     float* __restrict to) const {
        if (!p_.half_x) {
            for (int x = 0; x < width_; x++) to[x] = in[x] - luma[x];
            return;
        }
        float *even = split + MARGIN, *odd = split + line_ + MARGIN;
        const int pairs = p_.width / 2;
        for (int x = 0; x < pairs; x++) {
            even[x] = in[2 * x] - luma[2 * x];
            odd[x] = in[2 * x + 1] - luma[2 * x + 1];
        }
        const float last = in[p_.width - 1] - luma[p_.width - 1];
        if (p_.width % 2) even[pairs] = odd[pairs] = last;
        for (int x = 1; x <= MARGIN; x++) {
            even[-x] = odd[-x] = even[0];
            even[width_ - 1 + x] = odd[width_ - 1 + x] = last;
        }
        const float* from[MOST_TAPS];
        for (int k = 0; k < p_.along.count; k++) {
            const int at = p_.along.first + k;
            from[k] = at % 2 == 0 ? even + at / 2 : odd + (at - 1) / 2;
        }
        weigh(p_.along.count, from, p_.along.weight, to, width_);
    }

    void put(void* plane, int row, int width, const float* values, float gain, float offset) const {
        if (p_.bytes == 1)
            codes(static_cast<uint8_t*>(plane) + static_cast<size_t>(row) * width, width, values, gain, offset);
        else
            codes(static_cast<uint16_t*>(plane) + static_cast<size_t>(row) * width, width, values, gain, offset);
    }

    template <class T>
    void codes(T* __restrict to, int width, const float* __restrict values, float gain, float offset) const {
        const float top = p_.top;
        for (int x = 0; x < width; x++) {
            const float code = std::nearbyint(values[x] * gain + offset);
            to[x] = static_cast<T>(static_cast<int32_t>(std::min(std::max(code, 0.f), top)));
        }
    }

    const Planes& p_;
    const int width_, height_;
    const size_t line_;
};

class Unpacker {
   public:
    explicit Unpacker(const Samples& samples)
        : p_(samples),
          width_((samples.width + samples.half_x) >> samples.half_x),
          height_((samples.height + samples.half_y) >> samples.half_y) {}

    void run(Pool& pool) const {
        in_bands(pool, p_.threads, p_.height, [&](int first, int last) { band(first, last); });
    }

   private:
    void band(int first, int last) const {
        const size_t line = static_cast<size_t>(width_) + 2 * MARGIN;
        // Even and odd rows read others, from `low` to before `high`.
        int low = p_.down[0].first, high = low + p_.down[0].count;
        if (p_.half_y) {
            low = std::min(low, p_.down[1].first);
            high = std::max(high, p_.down[1].first + p_.down[1].count);
        }
        Ring rows[2] = {{high - low, line}, {high - low, line}};
        std::vector<float> luma(p_.width), tall(line), halves(2 * static_cast<size_t>(width_)), chroma[2];
        for (auto& one : chroma) one.resize(2 * static_cast<size_t>(width_));
        const float* wide[2];
        int next = -(1 << 30);
        for (int y = first; y < last; y++) {
            const Taps& down = p_.down[p_.half_y ? y % 2 : 0];
            const int at = p_.half_y ? y / 2 : y;
            for (next = std::max(next, at + low); next < at + high; next++)
                for (int c = 0; c < 2; c++)
                    numbers(c ? p_.cr : p_.cb, clamped(next, height_), p_.chroma_step, width_, rows[c][next]);
            for (int c = 0; c < 2; c++) {
                const float* from[MOST_TAPS];
                for (int k = 0; k < down.count; k++) from[k] = rows[c][at + down.first + k];
                weigh(down.count, from, down.weight, tall.data() + MARGIN, width_);
                wide[c] = widened(tall.data() + MARGIN, halves.data(), chroma[c].data());
            }
            numbers(p_.y, y, p_.luma_step, p_.width, luma.data());
            colours(y, luma.data(), wide[0], wide[1]);
        }
    }

    // Row y of a plane.
    void numbers(const void* plane, int y, int64_t step, int width, float* __restrict to) const {
        const auto* row = static_cast<const unsigned char*>(plane) + y * step;
        if (p_.bytes == 1) {
            for (int x = 0; x < width; x++) to[x] = row[x];
        } else {
            const auto* wide = reinterpret_cast<const uint16_t*>(row);
            for (int x = 0; x < width; x++) to[x] = wide[x];
        }
    }

    // A row of one chroma at the luma's width; `line` has a margin on either side, `halves` room for both of them.
    const float* widened(float* line, float* __restrict halves, float* __restrict to) const {
        for (int x = 1; x <= MARGIN; x++) line[-x] = line[0], line[width_ - 1 + x] = line[width_ - 1];
        for (int odd = 0; odd < 1 + p_.half_x; odd++) {
            const Taps& along = p_.along[odd];
            const float* from[MOST_TAPS];
            for (int k = 0; k < along.count; k++) from[k] = line + along.first + k;
            weigh(along.count, from, along.weight, p_.half_x ? halves + odd * width_ : to, width_);
        }
        if (p_.half_x)
            for (int x = 0; x < width_; x++) to[2 * x] = halves[x], to[2 * x + 1] = halves[width_ + x];
        return to;
    }

    void colours(int y, const float* __restrict luma, const float* __restrict cb, const float* __restrict cr) const {
        const size_t plane = static_cast<size_t>(p_.height) * p_.width;
        float* __restrict red = p_.rgb + static_cast<size_t>(y) * p_.width, * __restrict green = red + plane, * __restrict blue = green + plane;
        for (int x = 0; x < p_.width; x++) {
            const float light = (luma[x] - p_.black) * p_.luma_gain, u = (cb[x] - p_.zero) * p_.chroma_gain,
                        v = (cr[x] - p_.zero) * p_.chroma_gain;
            red[x] = light + v * p_.red;
            green[x] = light + u * p_.green[0] + v * p_.green[1];
            blue[x] = light + u * p_.blue;
        }
    }

    const Samples& p_;
    const int width_, height_;
};

}  // namespace rlfn
