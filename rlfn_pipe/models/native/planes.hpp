// A float32 RGB picture to quantised Y'CbCr planes: what rlfn_pipe/engine/colour.py does in many passes, row by row.
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

class Packer {
   public:
    explicit Packer(const Planes& planes)
        : p_(planes),
          width_((planes.width + planes.half_x) >> planes.half_x),
          height_((planes.height + planes.half_y) >> planes.half_y),
          before_(std::max(0, -planes.along.first)),
          line_(planes.width + MOST_TAPS * 2) {}

    void run(Pool& pool) const {
        const int rows = 32, bands = (height_ + rows - 1) / rows;
        pool.run(p_.threads, bands, [&](int i, int) { band(i * rows, std::min(height_, (i + 1) * rows)); });
    }

   private:
    // Chroma rows first .. last, and the luma rows that lie beside them.
    void band(int first, int last) const {
        const int step = 1 + p_.half_y, taps = p_.down.count;
        const int luma_end = last == height_ ? p_.height : last * step;
        std::vector<float> full(2 * line_), narrow(static_cast<size_t>(2) * taps * width_), sum(width_), luma(p_.width);
        std::vector<float> room(p_.excess ? 3 * static_cast<size_t>(p_.width) + p_.width / p_.scale + 2 : 0);
        int have = 0, from = first * step + p_.down.first;  // rows of the ring hold rows [from, from + have)
        int luma_row = first * step;
        for (int row = first; row < last; row++) {
            const int start = row * step + p_.down.first;
            for (int y = std::max(start, from + have); y < start + taps; y++) {
                const int inside = std::min(std::max(y, 0), p_.height - 1);
                float* slot = narrow.data() + static_cast<size_t>((y - p_.down.first) % taps) * 2 * width_;
                chroma_line(channels(inside, room.data()), luma.data(), full.data(), slot);
                if (y == luma_row && y < luma_end)
                    put(p_.y, y, p_.width, luma.data(), p_.luma_gain, p_.luma_offset), luma_row++;
            }
            from = start, have = taps;
            for (int c = 0; c < 2; c++) {
                for (int k = 0; k < taps; k++) {
                    const float* in = narrow.data() +
                                      static_cast<size_t>((start + k - p_.down.first) % taps) * 2 * width_ + c * width_;
                    const float w = p_.down.weight[k];
                    if (k == 0)
                        for (int x = 0; x < width_; x++) sum[x] = in[x] * w;
                    else
                        for (int x = 0; x < width_; x++) sum[x] += in[x] * w;
                }
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
        auto line = [&](int at) {
            return p_.excess + (static_cast<size_t>(c) * h + std::min(std::max(at, 0), h - 1)) * w;
        };
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

    void luma_line(const Channels& in, float* luma) const {
        const float *r = in.rgb[0], *g = in.rgb[1], *b = in.rgb[2];
        for (int x = 0; x < p_.width; x++) luma[x] = r[x] * p_.red + g[x] * p_.green + b[x] * p_.blue;
    }

    // Luma and both chroma rows, these at their own width.
    void chroma_line(const Channels& row, float* luma, float* full, float* out) const {
        luma_line(row, luma);
        for (int c = 0; c < 2; c++) {
            const float* in = row.rgb[c ? 0 : 2];
            float* line = full + c * line_ + before_;
            for (int x = 0; x < p_.width; x++) line[x] = in[x] - luma[x];
            for (int x = 1; x <= before_; x++) line[-x] = line[0];
            for (int x = p_.width; x < static_cast<int>(line_) - before_; x++) line[x] = line[p_.width - 1];
            float* __restrict to = out + c * width_;
            const Taps& t = p_.along;
            if (!p_.half_x) {
                std::memcpy(to, line, sizeof(float) * width_);
                continue;
            }
            std::memset(to, 0, sizeof(float) * width_);
            for (int k = 0; k < t.count; k++) {
                const float* __restrict from = line + t.first + k;
                const float w = t.weight[k];
                for (int x = 0; x < width_; x++) to[x] += from[2 * x] * w;
            }
        }
    }

    void put(void* plane, int row, int width, const float* values, float gain, float offset) const {
        if (p_.bytes == 1)
            codes(static_cast<uint8_t*>(plane) + static_cast<size_t>(row) * width, width, values, gain, offset);
        else
            codes(static_cast<uint16_t*>(plane) + static_cast<size_t>(row) * width, width, values, gain, offset);
    }

    template <class T>
    void codes(T* to, int width, const float* values, float gain, float offset) const {
        for (int x = 0; x < width; x++) {
            const float code = std::nearbyint(values[x] * gain + offset);
            to[x] = static_cast<T>(static_cast<int32_t>(std::min(std::max(code, 0.f), p_.top)));
        }
    }

    const Planes& p_;
    const int width_, height_, before_;
    const size_t line_;
};

}  // namespace rlfn
