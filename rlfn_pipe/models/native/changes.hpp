// A picture that differs from the one before in places: layers that were kept are mended where their input changed.
// See rlfn_pipe/models/native/memory.py.
#pragma once

#include <algorithm>
#include <vector>

#include "network.hpp"

namespace rlfn {

template <int NV>
class Changes : Network<NV> {
    using Network<NV>::net_, Network<NV>::job_, Network<NV>::p_, Network<NV>::all;
    using Network<NV>::changed_, Network<NV>::next_, Network<NV>::picture_changed_;
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
        double work = 0;
        std::memcpy(picture_changed_, changed_, p_.squares());
        for (int k = 0; k < net_.blocks; k++) {
            work +=
                step(pool, 3, [&](const Tile& tile, Scratch<NV>& s) { this->template block_tile<true>(k, tile, s); });
            small_map(pool, k);
            std::swap(changed_, next_);
        }
        // The end computes the first layer again.
        for (size_t i = 0; i < p_.squares(); i++) changed_[i] |= picture_changed_[i];
        work += step(pool, 2, [&](const Tile& tile, Scratch<NV>& s) { this->end_tile(tile, s); });
        this->give(pool);
        return work / (net_.blocks + 1);
    }

   private:
    // Finds the squares that see a mark up to so many squares away. A step's convolutions reach 3 pixels, and one more
    // with the first layer; but the bits of a whole quad (band) depend on all that any of its pixels reads.
    void spread(int reach, int reach_down) {
        const int along = p_.squares_along(), down = p_.squares_down();
        std::vector<unsigned char> wide(p_.squares());
        near_.assign(p_.squares(), 0);
        auto add = [](unsigned char* to, const unsigned char* from, int count) {
            for (int i = 0; i < count; i++) to[i] |= from[i];
        };
        for (int r = 0; r < down; r++) {
            const unsigned char* marks = changed_ + static_cast<size_t>(r) * along;
            unsigned char* to = wide.data() + static_cast<size_t>(r) * along;
            for (int k = 0; k <= std::min(reach, along - 1); k++) {
                add(to + k, marks, along - k);
                add(to, marks + k, along - k);
            }
        }
        for (int r = 0; r < down; r++)
            for (int k = std::max(0, r - reach_down); k <= std::min(down - 1, r + reach_down); k++)
                add(near_.data() + static_cast<size_t>(r) * along, wide.data() + static_cast<size_t>(k) * along, along);
    }

    // What a tile costs, in pixels: its convolutions compute more than the tile, on average this much.
    static double cost(const Tile& t) { return (t.x1 - t.x0 + 10.0) * (t.y1 - t.y0 + (BAND == 1 ? 2.0 : 10.0)); }

    // Calls f(tile, scratch) for tiles that hold all squares that see a mark `reach` squares away; for the whole
    // picture's where that costs as much.
    template <class F>
    double step(Pool& pool, int reach, F&& f) {
        spread(reach, BAND == 1 ? 1 : reach);
        std::vector<Tile> tiles = marked_tiles(), whole;
        for (int i = 0; i < p_.tiles(); i++) whole.push_back(p_.tile(i));
        double some = 0, most = 0;
        for (const Tile& t : tiles) some += cost(t);
        for (const Tile& t : whole) most += cost(t);
        if (some >= most) tiles.swap(whole);
        std::memset(next_, 0, p_.squares());
        all(pool, static_cast<int>(tiles.size()), [&](int i, Scratch<NV>& s) { f(tiles[i], s); });
        return std::min(1.0, some / most);
    }

    // Tiles that hold all squares found: those of neighbouring cells, as tight as they can be, joined where that is
    // cheaper, and cut where threads would wait. No two of them meet.
    std::vector<Tile> marked_tiles() const {
        constexpr int PER = CELL / SQUARE;
        const int along = p_.squares_along(), down = p_.squares_down(), most = (p_.quads - 7) * QUAD;
        const Tile none{along, 0, down, 0};  // in squares, as `box` and `cell`
        std::vector<Tile> tiles;
        for (int top = 0; top < down; top += PER) {
            const int bottom = std::min(down, top + PER);
            Tile box = none;
            auto finish = [&] {
                if (box.x1 > 0)
                    tiles.push_back({box.x0 * SQUARE, std::min(p_.w, box.x1 * SQUARE), box.y0 * SQUARE,
                                     std::min(p_.h, box.y1 * SQUARE)});
                box = none;
            };
            for (int left = 0; left < along; left += PER) {
                const int right = std::min(along, left + PER);
                Tile cell = none;
                for (int r = top; r < bottom; r++) {
                    const unsigned char* near = near_.data() + static_cast<size_t>(r) * along;
                    for (int c = left; c < right; c++)
                        if (near[c]) cell = hull(cell, {c, c + 1, r, r + 1});
                }
                if (cell.x1 == 0 || (box.x1 > 0 && (cell.x1 - box.x0) * SQUARE > most)) finish();
                box = hull(box, cell);
            }
            finish();
        }
        join(tiles, most);
        balance(tiles);
        return tiles;
    }

    // Cuts large tiles, so that threads end together; the largest come first.
    void balance(std::vector<Tile>& tiles) const {
        auto cheaper = [](const Tile& a, const Tile& b) { return cost(a) < cost(b); };
        double total = 0;
        for (const Tile& t : tiles) total += cost(t);
        std::make_heap(tiles.begin(), tiles.end(), cheaper);
        while (p_.threads > 1 && !tiles.empty() && cost(tiles.front()) > total / (2 * p_.threads)) {
            std::pop_heap(tiles.begin(), tiles.end(), cheaper);
            Tile &one = tiles.back(), other = one;
            const int wide = one.x1 - one.x0, high = one.y1 - one.y0;
            if (std::max(wide, high) < CELL) break;
            if (wide > high)
                one.x1 = other.x0 = one.x0 + wide / 2 / SQUARE * SQUARE;
            else
                one.y1 = other.y0 = one.y0 + high / 2 / SQUARE * SQUARE;
            std::push_heap(tiles.begin(), tiles.end(), cheaper);
            tiles.push_back(other);
            std::push_heap(tiles.begin(), tiles.end(), cheaper);
        }
        std::sort(tiles.begin(), tiles.end(), [&](const Tile& a, const Tile& b) { return cheaper(b, a); });
    }

    static Tile hull(const Tile& a, const Tile& b) {
        return {std::min(a.x0, b.x0), std::max(a.x1, b.x1), std::min(a.y0, b.y0), std::max(a.y1, b.y1)};
    }

    // Makes one of two tiles where that costs less and meets no third one.
    static void join(std::vector<Tile>& tiles, int most) {
        auto partner = [&](const Tile& made) {
            return std::find_if(tiles.begin(), tiles.end(), [&](const Tile& other) {
                if (&other >= &made) return false;
                const Tile both = hull(other, made);
                return both.x1 - both.x0 <= most && cost(both) <= cost(other) + cost(made) &&
                       std::none_of(tiles.begin(), tiles.end(), [&](const Tile& t) {
                           return &t != &other && &t != &made && t.x0 < both.x1 && both.x0 < t.x1 && t.y0 < both.y1 &&
                                  both.y0 < t.y1;
                       });
            });
        };
        for (size_t i = 1; i < tiles.size();) {
            const auto other = partner(tiles[i]);
            if (other == tiles.end()) {
                i++;
                continue;
            }
            *other = hull(*other, tiles[i]);
            tiles.erase(tiles.begin() + i);
        }
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

    std::vector<unsigned char> near_;
};

}  // namespace rlfn
