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

// `half_x`, `half_y`: chroma has half the columns (rows). Code values of `bytes` each, 0 .. `top`.
struct Planes {
    int32_t height, width, threads, bytes, half_x, half_y;
    float top, red, green, blue, luma_gain, luma_offset, cb_gain, cr_gain, chroma_offset;
    Taps along, down;
    const float* rgb;
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
        int have = 0, from = first * step + p_.down.first;  // rows of the ring hold rows [from, from + have)
        int luma_row = first * step;
        for (int row = first; row < last; row++) {
            const int start = row * step + p_.down.first;
            for (int y = std::max(start, from + have); y < start + taps; y++) {
                const int inside = std::min(std::max(y, 0), p_.height - 1);
                float* slot = narrow.data() + static_cast<size_t>((y - p_.down.first) % taps) * 2 * width_;
                chroma_line(inside, luma.data(), full.data(), slot);
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
            luma_line(luma_row, luma.data());
            put(p_.y, luma_row, p_.width, luma.data(), p_.luma_gain, p_.luma_offset);
        }
    }

    const float* channel(int c, int y) const { return p_.rgb + (static_cast<size_t>(c) * p_.height + y) * p_.width; }

    void luma_line(int y, float* luma) const {
        const float *r = channel(0, y), *g = channel(1, y), *b = channel(2, y);
        for (int x = 0; x < p_.width; x++) luma[x] = r[x] * p_.red + g[x] * p_.green + b[x] * p_.blue;
    }

    // Luma and both chroma rows, these at their own width.
    void chroma_line(int y, float* luma, float* full, float* out) const {
        luma_line(y, luma);
        for (int c = 0; c < 2; c++) {
            const float* in = channel(c ? 0 : 2, y);
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
