// A picture that differs from the one before in places: layers that were kept are mended where their input changed.
// See rlfn_pipe/models/native/memory.py.
#pragma once

#include <vector>

#include "network.hpp"

namespace rlfn {

template <int NV>
class Changes : Network<NV> {
    using Network<NV>::net_, Network<NV>::job_, Network<NV>::p_, Network<NV>::all;
    using Network<NV>::changed_, Network<NV>::next_, Network<NV>::first_changed_;
    using Network<NV>::map_changed_, Network<NV>::rows_changed_, Network<NV>::picture_;

   public:
    using Network<NV>::Network;

    // Keeps the picture and marks the squares in which it differs from the one before; their share of all.
    double compare(Pool& pool) {
        const int along = p_.squares_along(), w = p_.w;
        all(pool, p_.squares_down(), [&](int row, Scratch<NV>&) {
            unsigned char* marks = changed_ + static_cast<size_t>(row) * along;
            std::memset(marks, 0, along);
            for (int c = 0; c < 3; c++)
                for (int y = row * SQUARE; y < std::min(p_.h, (row + 1) * SQUARE); y++) {
                    const size_t at = (static_cast<size_t>(c) * p_.h + y) * w;
                    const auto* now = reinterpret_cast<const uint32_t*>(job_.picture) + at;
                    auto* old = reinterpret_cast<uint32_t*>(picture_) + at;
                    for (int x = 0; x < w; x++) marks[x / SQUARE] |= now[x] != old[x];
                    std::memcpy(old, now, sizeof(float) * w);
                }
        });
        size_t count = 0;
        for (size_t i = 0; i < p_.squares(); i++) count += changed_[i];
        return static_cast<double>(count) / p_.squares();
    }

    // Computes what sees a marked square, layer by layer, as long as what comes out has other bits than before.
    // Returns the share of the work of a whole picture.
    double update(Pool& pool) {
        const int along = p_.squares_along(), down = p_.squares_down();
        double work = 0;
        std::memset(next_, 0, p_.squares());
        all(pool, down, [&](int row, Scratch<NV>& s) {
            for (int c = 0; c < along; c++) {
                if (!seen(row, row + 1, c, c + 1, 1)) continue;
                int end = c + 1;
                while (end < along && seen(row, row + 1, end, end + 1, 1)) end++;
                for (int y = row * SQUARE; y < std::min(p_.h, (row + 1) * SQUARE); y++)
                    this->template head_row<true>(y, c * SQUARE, std::min(p_.w, end * SQUARE), s);
                c = end;
            }
        });
        std::swap(changed_, next_);
        std::memcpy(first_changed_, changed_, p_.squares());
        for (int k = 0; k < net_.blocks; k++) {
            work +=
                step(pool, 3, [&](const Tile& tile, Scratch<NV>& s) { this->template block_tile<true>(k, tile, s); });
            small_map(pool, k);
            std::swap(changed_, next_);
        }
        // The end adds the first layer's output again.
        for (size_t i = 0; i < p_.squares(); i++) changed_[i] |= first_changed_[i];
        work += step(pool, 2, [&](const Tile& tile, Scratch<NV>& s) { this->end_tile(tile, s); });
        this->give(pool);
        return work / (net_.blocks + 1);
    }

   private:
    // Whether a square is marked in these rows and columns of squares, or up to `reach` away from them. A step's
    // convolutions reach 3 pixels; but the bits of a whole quad (band) depend on all that any of its pixels reads.
    bool seen(int top, int bottom, int left, int right, int reach) const {
        const int along = p_.squares_along(), reach_down = BAND == 1 ? 1 : reach;
        left = std::max(0, left - reach), right = std::min(along, right + reach);
        for (int r = std::max(0, top - reach_down); r < std::min(p_.squares_down(), bottom + reach_down); r++)
            if (std::memchr(changed_ + static_cast<size_t>(r) * along + left, 1, right - left)) return true;
        return false;
    }

    // Calls f(tile, scratch) for cells that see a mark, neighbours joined, `reach` columns of squares away; for all of
    // them where they are many.
    template <class F>
    double step(Pool& pool, int reach, F&& f) {
        constexpr int PER = CELL / SQUARE;
        const int most = std::max(CELL, (p_.quads - 7) * QUAD / CELL * CELL);
        const int rows = (p_.h + CELL - 1) / CELL, columns = (p_.w + CELL - 1) / CELL;
        std::vector<Tile> tiles;
        int cells = 0;
        for (int r = 0; r < rows; r++) {
            bool joined = false;
            for (int c = 0; c < columns; c++) {
                const bool needed = seen(r * PER, (r + 1) * PER, c * PER, (c + 1) * PER, reach);
                const Tile cell{c * CELL, std::min(p_.w, (c + 1) * CELL), r * CELL, std::min(p_.h, (r + 1) * CELL)};
                if (needed && joined && cell.x1 - tiles.back().x0 <= most)
                    tiles.back().x1 = cell.x1;
                else if (needed)
                    tiles.push_back(cell);
                joined = needed;
                cells += needed;
            }
        }
        std::memset(next_, 0, p_.squares());
        const double share = static_cast<double>(cells) / (rows * columns);
        // A cell by itself costs more than as a part of a tile, up to a third with rows, up to two thirds with bands.
        constexpr double MOST = BAND == 1 ? 0.7 : 0.6;
        if (share > MOST) {
            tiles.clear();
            for (int i = 0; i < p_.tiles(); i++) tiles.push_back(p_.tile(i));
        }
        all(pool, static_cast<int>(tiles.size()), [&](int i, Scratch<NV>& s) { f(tiles[i], s); });
        return std::min(1.0, share / MOST);
    }

    // Block k's small map where its input changed; marks in `next_` over which its stretch did.
    void small_map(Pool& pool, int k) {
        const int along = p_.squares_along();
        auto marked = [&](int first, int last) {  // rows of pixels
            first /= SQUARE, last = std::min(p_.squares_down(), last / SQUARE + 1);
            return std::memchr(next_ + static_cast<size_t>(first) * along, 1,
                               static_cast<size_t>(last - first) * along);
        };
        all(pool, p_.h2,
            [&](int y, Scratch<NV>& s) { rows_changed_[y] = marked(2 * y, 2 * y + 2) && this->pooled_row(k, y, s); });
        std::memset(map_changed_, 0, static_cast<size_t>(p_.h3) * along);
        all(pool, p_.h3, [&](int y, Scratch<NV>& s) {
            const int first = 3 * std::max(0, y - 1), last = 3 * std::min(p_.h3 - 1, y + 1) + 7;
            if (std::memchr(rows_changed_ + first, 1, last - first))
                this->map_row(k, y, s, map_changed_ + static_cast<size_t>(y) * along);
        });
        all(pool, p_.squares_down(), [&](int row, Scratch<NV>&) {
            unsigned char* marks = next_ + static_cast<size_t>(row) * along;
            for (int y = row * SQUARE; y < std::min(p_.h, (row + 1) * SQUARE); y++)
                for (int i = 0; i < 2; i++) {
                    const int from = std::min(job_.stretch.row[y] + i, p_.h3 - 1);
                    const unsigned char* map = map_changed_ + static_cast<size_t>(from) * along;
                    for (int c = 0; c < along; c++) marks[c] |= map[c];
                }
        });
    }
};

}  // namespace rlfn
