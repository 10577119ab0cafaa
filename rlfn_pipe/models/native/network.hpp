// An RLFN, the whole network in one call. See rlfn_pipe/models/native/network.py.
//
// A picture goes through in passes, since ESA's small map needs all of it: for each block its three convolutions, tile
// by tile, row by row, with the block before's attention computed as it is read; then the small map; at last the two
// convolutions of the end. The first layer is computed where it is read, by the first block and at the end: that takes
// less time than its way to memory and back. What a pass keeps in between are a few rows that stay in the second-level
// cache. Tiles share a border of recomputed pixels and never see one another, so any number of threads gives equal
// bits.

#pragma once

#include "layout.hpp"
#include "pool.hpp"

namespace rlfn {

template <int NV>
class Network {
    static constexpr int CS = NV * LANES;

   public:
    // With `job.memory` each block keeps its own layers there. Without, only the last two blocks' are held: a block's
    // sum goes to where that of the block before has been read, `lag` rows from its place.
    Network(const Net& net, const Job& job) : net_(net), job_(job), p_(job) {
        unsigned char* at = job.memory ? job.memory : job.workspace;
        auto take = [&](size_t bytes) {
            unsigned char* here = at;
            at += aligned(bytes);
            return here;
        };
        const Sizes sizes(p_);
        for (int k = 0; k < net.blocks; k++) {
            if (k >= 2 && !job.memory) {
                total_[k] = total_[k - 2], reduced_[k] = reduced_[k - 2];
                wide_[k] = wide_[k - 2], pooled_[k] = pooled_[k - 2];
                continue;
            }
            if (k == 1 && !job.memory) {
                total_[1] = total_[0], reduced_[1] = reduced_[0];
                total_[0] += static_cast<size_t>(p_.lag()) * p_.w * CS;
                reduced_[0] += static_cast<size_t>(p_.lag()) * p_.w * F16;
            } else {
                const int rows = p_.h + (job.memory ? 0 : p_.lag());
                total_[k] = reinterpret_cast<Kept*>(take(sizes.total(rows)));
                reduced_[k] = reinterpret_cast<Kept*>(take(sizes.reduced(rows)));
            }
            wide_[k] = reinterpret_cast<float*>(take(sizes.wide));
            pooled_[k] = reinterpret_cast<float*>(take(sizes.pooled));
        }
        result_ = job.result;
        if (job.memory) {
            result_ = reinterpret_cast<float*>(take(sizes.result(net.scale)));
            picture_ = reinterpret_cast<float*>(take(sizes.picture));
            changed_ = take(p_.squares()), next_ = take(p_.squares()), picture_changed_ = take(p_.squares());
            map_changed_ = take(static_cast<size_t>(p_.h3) * p_.squares_along());
            rows_changed_ = take(p_.h2);
            at = job.workspace;
        }
        scratch_ = at;
    }

    struct Sizes {
        size_t width, wide, pooled, picture;
        explicit Sizes(const Plan& p) : width(p.w) {
            wide = aligned(sizeof(float) * p.h3 * p.w * F16), pooled = aligned(sizeof(float) * p.h2 * p.w3 * F16);
            picture = aligned(width * p.h * 3 * sizeof(float));
        }
        size_t total(int rows) const { return aligned(rows * width * CS * sizeof(Kept)); }
        size_t reduced(int rows) const { return aligned(rows * width * F16 * sizeof(Kept)); }
        size_t block(int rows) const { return total(rows) + reduced(rows) + wide + pooled; }
        size_t result(int scale) const { return picture * scale * scale; }
    };

    static size_t workspace(const Net& net, const Job& job) {
        const Plan p(job);
        const Sizes sizes(p);
        const size_t held = sizes.total(p.h + p.lag()) + sizes.reduced(p.h + p.lag()) + 2 * (sizes.wide + sizes.pooled);
        return Scratch<NV>::bytes(p) * p.threads + (job.memory ? 0 : held);
    }

    static size_t memory(const Net& net, const Job& job) {
        const Plan p(job);
        const Sizes sizes(p);
        return net.blocks * sizes.block(p.h) + sizes.result(net.scale) + sizes.picture + 3 * aligned(p.squares()) +
               aligned(static_cast<size_t>(p.h3) * p.squares_along()) + aligned(p.h2);
    }

    // The whole picture.
    void run(Pool& pool) {
        Turns turns(p_);
        for (int k = 0; k < net_.blocks; k++) {
            // Down where the sums come to lie above those that are read, up where they come to lie below.
            const bool up = k % 2 == 0;
            turns.begin();
            all(pool, p_.tiles(), [&](int i, Scratch<NV>& s) {
                if (!job_.memory) turns.wait(i);
                block_tile<false>(k, p_.tile(up ? p_.tiles() - 1 - i : i), s);
                turns.finish(i);
            });
            all(pool, p_.h2, [&](int y, Scratch<NV>& s) { pooled_row(k, y, s); });
            all(pool, p_.h3, [&](int y, Scratch<NV>& s) { map_row(k, y, s); });
        }
        all(pool, p_.tiles(), [&](int i, Scratch<NV>& s) { end_tile(p_.tile(i), s); });
        if (job_.memory) give(pool);
    }

   protected:
    template <class F>
    void all(Pool& pool, int count, F&& f) {
        pool.run(p_.threads, count, [&](int i, int worker) {
            Scratch<NV> scratch(scratch_ + Scratch<NV>::bytes(p_) * worker, p_);
            f(i, scratch);
        });
    }

    // The kept result to the caller.
    void give(Pool& pool) {
        const size_t line = static_cast<size_t>(p_.w) * net_.scale;
        const int lines = 3 * p_.h * net_.scale;
        all(pool, (lines + 63) / 64, [&](int i, Scratch<NV>&) {
            const int count = std::min(64, lines - 64 * i);
            std::memcpy(job_.result + 64 * i * line, result_ + 64 * i * line, sizeof(float) * count * line);
        });
    }

    // Puts a vector into its place; marks the pixel's square where the bits become others.
    template <bool TRACK>
    void put(Kept* to, Vector value, int x, int y) {
        if constexpr (!TRACK)
            store(to, value);
        else if (replace(to, value))
            next_[static_cast<size_t>(y / SQUARE) * p_.squares_along() + x / SQUARE] = 1;
    }

    // ---------------------------------------------------------------- the first layer

    // Pixels first .. last of row y, float32; `line` begins at `left`.
    void first_row(int y, int first, int last, float* line, int left, Scratch<NV>& s) const {
        const int w = p_.w, step = last - first + 18;
        float* lines = s.rest;
        for (int c = 0; c < 3; c++)
            for (int k = 0; k < 3; k++) {
                float* colour = lines + (c * 3 + k) * step;
                const int row = y + k - 1, from = std::max(0, first - 1), to = std::min(w, last + 1);
                std::memset(colour, 0, sizeof(float) * (last - first + 2));
                if (row >= 0 && row < p_.h)
                    std::memcpy(colour + from - first + 1,
                                job_.picture + (static_cast<size_t>(c) * p_.h + row) * w + from,
                                sizeof(float) * (to - from));
            }
        products<NV>(
            first, last, net_.head_bias,
            [&](auto& sums, int x) {
                for (int t = 0; t < 9; t++)
                    sums.template add<1, NV>(lines + t * step + x - first, 3, net_.head + t * 3 * CS);
            },
            [&](int x, int n, Vector sum) { store(line + (x - left) * CS + n * LANES, sum); });
    }

    // ---------------------------------------------------------------- a block's input, row by row

    // Pixels first .. last of row y of what block k reads (k beyond the last: the end), float32; `line` begins at
    // `left`.
    void input_row(int k, int y, int first, int last, float* line, int left, Scratch<NV>& s) {
        if (k == 0) return first_row(y, first, last, line, left, s);
        const size_t row = static_cast<size_t>(y) * p_.w;
        const Block& b = net_.block[k - 1];
        const Kept *total = total_[k - 1] + row * CS, *reduced = reduced_[k - 1] + row * F16;
        const float* above = wide_[k - 1] + static_cast<size_t>(job_.stretch.row[y]) * p_.w * F16;
        const float* below = job_.stretch.row[y] + 1 < p_.h3 ? above + static_cast<size_t>(p_.w) * F16 : above;
        const Vector upper = splat(job_.stretch.row_share[2 * y]), lower = splat(job_.stretch.row_share[2 * y + 1]);
        // So many pixels that what lies between the products stays in the first-level cache.
#if RLFN_AMX
        constexpr int PIXELS = 4 * Tiles::ROWS, WIDE = Tiles::FIRST;
        alignas(64) Kept hint[PIXELS * WIDE];
        alignas(64) float summed[PIXELS * CS], mask[PIXELS * CS], exponent[CS];
        for (int n = 0; n < CS; n += LANES) store(exponent + n, load(b.conv4_bias + n) * splat(EXPONENT));
        const Tiles tiles(net_.inputs);
        for (int from = first; from < last; from += PIXELS) {
            const int count = std::min(last - from, PIXELS);
            const Kept *reduced_here = reduced + static_cast<size_t>(from) * F16,
                       *total_here = total + static_cast<size_t>(from) * CS;
            for (int i = 0; i < count; i++) copy_wide(hint + i * WIDE, reduced_here + i * F16);
            for (int i = 0; i < count; i += Tiles::ROWS)
                tiles.begin<1>(), tiles.add<1, WIDE>(hint + i * WIDE, b.conv_f), tiles.end<1>(summed + i * F16);
            for (int i = 0; i < count; i++) {
                const size_t at = static_cast<size_t>(from + i) * F16;
                const Vector map = fma(upper, load(above + at), lower * load(below + at));
                store_wide(hint + i * WIDE, load(summed + i * F16) + load(b.conv_f_bias) + map);
            }
            for (int i = 0; i < count; i += Tiles::ROWS) {
                tiles.begin<NV>(), tiles.add<NV, WIDE>(hint + i * WIDE, b.conv4), tiles.end<NV>(mask + i * CS);
                tiles.products<NV, CS>(
                    1, [=](int) { return total_here + i * CS; }, b.c5, 0, summed + i * CS);
            }
            float* to = line + (from - left) * CS;
            for (int i = 0; i < count * CS; i += CS)
                for (int n = 0; n < CS; n += LANES)
                    store(to + i + n,
                          (load(summed + i + n) + load(b.c5_bias + n)) *
                              sigmoid_of_exponent(fma(load(mask + i + n), splat(EXPONENT), load(exponent + n))));
        }
#else
        constexpr int PIXELS = 24;
        alignas(64) Kept hint[PIXELS * F16];
        alignas(64) float mask[PIXELS * CS];
        for (int from = first; from < last; from += PIXELS) {
            const int to = std::min(last, from + PIXELS);
            products<EV>(
                from, to, b.conv_f_bias,
                [&](auto& sums, int x) {
                    sums.template add<F16, EV>(reduced + static_cast<size_t>(x) * F16, F16, b.conv_f);
                },
                [&](int x, int n, Vector sum) {
                    const size_t at = static_cast<size_t>(x) * F16 + n * LANES;
                    const Vector map = fma(upper, load(above + at), lower * load(below + at));
                    store(hint + (x - from) * F16 + n * LANES, sum + map);
                });
            products<NV>(
                from, to, b.conv4_bias,
                [&](auto& sums, int x) { sums.template add<F16, NV>(hint + (x - from) * F16, F16, b.conv4); },
                [&](int x, int n, Vector sum) { store(mask + (x - from) * CS + n * LANES, sigmoid(sum)); });
            products<NV>(
                from, to, b.c5_bias,
                [&](auto& sums, int x) {
                    sums.template add<CS, NV>(total + static_cast<size_t>(x) * CS, net_.inputs, b.c5);
                },
                [&](int x, int n, Vector sum) {
                    store(line + (x - left) * CS + n * LANES, sum * load(mask + (x - from) * CS + n * LANES));
                });
        }
#endif
    }

    // The rows that a convolution's band reads, from the one above it to the one below; zeros stand for rows beyond the
    // picture.
    struct Rows {
        const Row* rows[BAND + 2];
    };
    Rows around(int stage, int band, const Scratch<NV>& s) const {
        Rows made;
        for (int i = 0; i < BAND + 2; i++) {
            const int y = band * BAND + i - 1;
            made.rows[i] = y < 0 || y >= p_.h ? s.nothing : s.row(stage, y);
        }
        return made;
    }

    // Calls f(y) for the rows of a band that lie in the picture.
    template <class F>
    void rows_of(int band, F&& f) const {
        for (int y = std::max(0, band * BAND); y < std::min(p_.h, (band + 1) * BAND); y++) f(y);
    }

    // Quads `from` .. `to`, counted from `left`, as far as they lie in the picture.
    struct Range {
        int first, last;
    };
    Range within(int left, int from, int to) const {
        return {std::max(from, -left / QUAD), std::min(to, (p_.w - left + QUAD - 1) / QUAD)};
    }

    // ---------------------------------------------------------------- a block's three convolutions

    template <bool TRACK>
    void block_tile(int k, const Tile& t, Scratch<NV>& s) {
        const Block& b = net_.block[k];
        const int h = p_.h, w = p_.w, left = t.x0 - 3 * QUAD, n = (t.x1 - t.x0 + QUAD - 1) / QUAD;
        const int right = w - left, top = t.y0 / BAND, bottom = (t.y1 + BAND - 1) / BAND, end = (h + BAND - 1) / BAND;
        const Range first = within(left, 1, 5 + n), second = within(left, 2, 4 + n), third = within(left, 3, 3 + n);
        const int xa = std::max(0, left + 3), xb = std::min(w, t.x0 + n * QUAD + 9);
        const Vector slope = splat(SLOPE);
        auto leaky = [slope](Vector v) { return most(v, v * slope); };
        s.clear(p_);
#if RLFN_AMX
        const Tiles tiles(net_.inputs);
#endif
        for (int a = top - 3; a < bottom + 3; a++) {
            rows_of(a, [&](int y) {
                input_row(k, y, xa, xb, s.x(y), left, s);
                prepare<NV>(s.x(y), s.row(0, y), p_.quads, first.first, first.last);
            });
            auto inner = [&](int stage, int band, const Range& now, const Range& next, int inputs) {
#if RLFN_BF16
                convolve_on<NV>(around(stage, band, s).rows, p_.quads, b.conv[stage], inputs, now.first, now.last,
                                right, s.sum, s.row(stage + 1, band), next.first, next.last,
                                [leaky, bias = b.conv_bias[stage]](int v, Vector value) {
                                    return leaky(value + load(bias + v * LANES));
                                });
#else
                float* lines[BAND];
                for (int i = 0; i < BAND; i++) lines[i] = s.inner(stage, band * BAND + i);
                convolve<NV, NV>(
                    around(stage, band, s).rows, p_.quads, b.conv[stage], inputs, now.first, now.last, right, s.sum,
                    [lines, leaky, bias = b.conv_bias[stage]](int x, int row, int v, Vector value) {
                        store(lines[row] + x * CS + v * LANES, leaky(value + load(bias + v * LANES)));
                    },
                    [](int) {});
#endif
            };
            const int one = a - 1, two = a - 2, three = a - 3;
            if (one >= std::max(0, top - 2) && one < std::min(end, bottom + 2))
                inner(0, one, first, second, net_.inputs);
            if (two >= std::max(0, top - 1) && two < std::min(end, bottom + 1))
                inner(1, two, second, third, net_.mid_inputs);
            if (three < top) continue;
            const float* skip[BAND];
            Kept* total[BAND];
            for (int i = 0; i < BAND; i++) {
                skip[i] = s.x(three * BAND + i);
                total[i] = total_[k] + (static_cast<ptrdiff_t>(three * BAND + i) * w + left) * CS;
            }
            convolve<NV, NV>(
                around(2, three, s).rows, p_.quads, b.conv[2], net_.mid_inputs, third.first, third.last, right, s.sum,
                [=, this, bias = b.conv_bias[2]](int x, int row, int v, Vector value) {
                    const int y = three * BAND + row;
                    if (y >= h) return;
                    value = leaky(value + load(bias + v * LANES)) + load(skip[row] + x * CS + v * LANES);
                    put<TRACK>(total[row] + x * CS + v * LANES, settle(value), left + x, y);
                },
                [&, from = t.x0](int quad) mutable {
                    const int to = std::min(left + quad * QUAD, t.x1);
                    rows_of(three, [&](int y) { reduce(k, y, from, to); });
                    from = to;
                });
        }
    }

    // ESA's first convolution for pixels first .. last of a row, `c5` before it folded in.
    void reduce(int k, int y, int first, int last) {
        const Block& b = net_.block[k];
        const size_t row = static_cast<size_t>(y) * p_.w;
#if RLFN_AMX
        const Tiles tiles(net_.inputs);
        alignas(64) float sums[Tiles::ROWS * F16];
        for (int begin = first; begin < last; begin += Tiles::ROWS) {
            const Kept* rows = total_[k] + (row + begin) * CS;
            tiles.products<1, CS>(
                1, [rows](int) { return rows; }, b.reduce, 0, sums);
            for (int x = begin; x < std::min(last, begin + Tiles::ROWS); x++)
                store(reduced_[k] + (row + x) * F16, load(sums + (x - begin) * F16) + load(b.reduce_bias));
        }
        return;
#endif
        products<EV>(
            first, last, b.reduce_bias,
            [&](auto& sums, int x) { sums.template add<CS, EV>(total_[k] + (row + x) * CS, net_.inputs, b.reduce); },
            [&](int x, int n, Vector sum) { store(reduced_[k] + (row + x) * F16 + n * LANES, sum); });
    }

    // ---------------------------------------------------------------- ESA's small map

    // Row y of the strided convolution, and the greatest of seven neighbours along it. Whether its bits are others now.
    bool pooled_row(int k, int y, Scratch<NV>& s) {
        const Block& b = net_.block[k];
        float* line = s.rest;
#if RLFN_AMX
        // Three neighbours are 48 numbers side by side.
        const Tiles tiles(3 * F16);
        for (int x = 0; x < p_.w2; x += Tiles::ROWS)
            tiles.products<1, 2 * F16>(
                3, [&](int t) { return reduced_[k] + (static_cast<size_t>(2 * y + t) * p_.w + 2 * x) * F16; }, b.conv2,
                3 * F16 * F16, line + x * F16);
        for (int x = 0; x < p_.w2; x++) store(line + x * F16, load(line + x * F16) + load(b.conv2_bias));
#else
        products<EV>(
            0, p_.w2, b.conv2_bias,
            [&](auto& sums, int x) {
                for (int t = 0; t < 9; t++) {
                    const size_t at = static_cast<size_t>(2 * y + t / 3) * p_.w + 2 * x + t % 3;
                    sums.template add<2 * F16, EV>(reduced_[k] + at * F16, F16, b.conv2 + t * F16 * F16);
                }
            },
            [&](int x, int n, Vector sum) { store(line + x * F16 + n * LANES, sum); });
#endif
        bool others = false;
        for (int x = 0; x < p_.w3; x++)
            for (int n = 0; n < EV; n++) {
                const float* from = line + 3 * x * F16 + n * LANES;
                Vector greatest = load(from);
                for (int i = 1; i < 7; i++) greatest = most(greatest, load(from + i * F16));
                others |=
                    replace(pooled_[k] + (static_cast<size_t>(y) * p_.w3 + x) * F16 + n * LANES, settle(greatest));
            }
        return others;
    }

    // Row y of the small map after its convolution, stretched to the picture's width. `marks`, if any, are set for
    // the columns of squares in which bits are others now.
    void map_row(int k, int y, Scratch<NV>& s, unsigned char* marks = nullptr) {
        const Block& b = net_.block[k];
        const int w3 = p_.w3, step = (w3 + 2) * F16;
        float* lines = s.rest;
        for (int i = 0; i < 3; i++) {
            const int row = std::min(std::max(y + i - 1, 0), p_.h3 - 1);
            for (int x = 0; x < w3 + 2; x++) {
                const int column = std::min(std::max(x - 1, 0), w3 - 1);
                const Vector share = splat(job_.stretch.border[(y + i) * (w3 + 2) + x]);
                for (int n = 0; n < EV; n++) {
                    const float* from = pooled_[k] + (static_cast<size_t>(3 * row) * w3 + column) * F16 + n * LANES;
                    Vector greatest = load(from);
                    for (int j = 1; j < 7; j++)
                        greatest = most(greatest, load(from + static_cast<size_t>(j) * w3 * F16));
                    store(lines + i * step + x * F16 + n * LANES, greatest * share);
                }
            }
        }
        float* map = lines + 3 * step;
        products<EV>(
            0, w3, b.conv3_bias,
            [&](auto& sums, int x) {
                for (int t = 0; t < 9; t++)
                    sums.template add<F16, EV>(lines + t / 3 * step + (x + t % 3) * F16, F16, b.conv3 + t * F16 * F16);
            },
            [&](int x, int n, Vector sum) { store(map + x * F16 + n * LANES, sum); });
        float* wide = wide_[k] + static_cast<size_t>(y) * p_.w * F16;
        for (int x = 0; x < p_.w; x++) {
            const int from = job_.stretch.column[x], next = std::min(from + 1, w3 - 1);
            const Vector a = splat(job_.stretch.column_share[2 * x]), c = splat(job_.stretch.column_share[2 * x + 1]);
            bool others = false;
            for (int n = 0; n < EV; n++)
                others |=
                    replace(wide + x * F16 + n * LANES,
                            settle(fma(a, load(map + from * F16 + n * LANES), c * load(map + next * F16 + n * LANES))));
            if (marks && others) marks[x / SQUARE] = 1;
        }
    }

    // ---------------------------------------------------------------- the end

    void end_tile(const Tile& t, Scratch<NV>& s) {
        switch (net_.scale) {
            case 2:
                return end_tile<2>(t, s);
            case 3:
                return end_tile<3>(t, s);
            default:
                return end_tile<4>(t, s);
        }
    }

    // Vectors of the last layer's outputs.
    template <int S>
    static constexpr int OUTPUTS = (3 * S * S + LANES - 1) / LANES;

    // The last two convolutions.
    template <int S>
    void end_tile(const Tile& t, Scratch<NV>& s) {
        const int w = p_.w, left = t.x0 - 3 * QUAD, n = (t.x1 - t.x0 + QUAD - 1) / QUAD, right = w - left;
        const int top = t.y0 / BAND, bottom = (t.y1 + BAND - 1) / BAND, end = (p_.h + BAND - 1) / BAND;
        const Range needed = within(left, 2, 4 + n);
        const int xa = std::max(0, left + 7), xb = std::min(w, t.x0 + n * QUAD + 5);
        s.clear(p_);
        for (int a = top - 2; a < bottom + 2; a++) {
            rows_of(a, [&](int y) {
                input_row(net_.blocks, y, xa, xb, s.x(y), left, s);
                prepare<NV>(s.x(y), s.row(0, y), p_.quads, needed.first, needed.last);
            });
            const int b = a - 1;
            if (b >= std::max(0, top - 1) && b < std::min(end, bottom + 1)) {
                // Rows of the band after the next, which are not there yet, lend their places.
                auto lent = [&](int y) { return s.x(y + 2 * BAND); };
                const int begin = std::max(0, left + needed.first * QUAD),
                          stop = std::min(w, left + needed.last * QUAD);
                rows_of(b, [&](int y) { first_row(y, begin, stop, lent(y), left, s); });
                convolve<NV, NV>(
                    around(0, b, s).rows, p_.quads, net_.body, net_.inputs, needed.first, needed.last, right, s.sum,
                    [&](int x, int row, int v, Vector value) {
                        const int y = b * BAND + row;
                        if (y >= p_.h) return;
                        value = value + load(net_.body_bias + v * LANES);
                        value = value + load(lent(y) + x * CS + v * LANES);
                        if (WINOGRAD_TAIL || net_.tail_float)
                            store(s.last(y) + x * CS + v * LANES, value);
                        else
                            store(reinterpret_cast<Kept*>(s.last(y)) + x * CS + v * LANES, value);
                    },
                    [](int) {});
            }
            if (a - 2 >= top) tail<S>(a - 2, t, left, s);
        }
    }

    // A band of the last convolution.
    template <int S>
    void tail(int band, const Tile& t, int left, Scratch<NV>& s) {
        constexpr int NT = OUTPUTS<S>;
        const float* lines[BAND + 2];
        for (int i = 0; i < BAND + 2; i++) {
            const int y = band * BAND + i - 1;
            lines[i] = y < 0 || y >= p_.h ? reinterpret_cast<const float*>(s.nothing) : s.last(y);
        }
        if constexpr (WINOGRAD_TAIL) {
            const Range range = within(left, 3, 3 + (t.x1 - t.x0 + QUAD - 1) / QUAD);
            convolve<NV, NT>(
                lines, p_.quads, static_cast<const Kept*>(net_.tail), net_.inputs, range.first, range.last, t.x1 - left,
                s.sum,
                [&](int x, int row, int n, Vector value) {
                    if (band * BAND + row < t.y1)
                        shuffle<S>(left + x, band * BAND + row, n, value + load(net_.tail_bias + n * LANES));
                },
                [](int) {});
        } else {
#if RLFN_AMX
            if (!net_.tail_float) {
                const Tiles tiles(net_.inputs);
                const auto* weights = static_cast<const Kept*>(net_.tail);
                const size_t step = static_cast<size_t>(net_.inputs) * NT * LANES;
                for (int begin = t.x0; begin < t.x1; begin += Tiles::ROWS) {
                    auto from = [&](int i) {
                        const ptrdiff_t at = static_cast<ptrdiff_t>(begin + i % 3 - 1 - left) * CS;
                        return reinterpret_cast<const Kept*>(lines[i / 3]) + at;
                    };
                    tiles.products<NT, CS>(9, from, weights, step, s.sum);
                    for (int x = begin; x < std::min(t.x1, begin + Tiles::ROWS); x++)
                        for (int n = 0; n < NT; n++)
                            shuffle<S>(x, band, n,
                                       load(s.sum + ((x - begin) * NT + n) * LANES) + load(net_.tail_bias + n * LANES));
                }
                return;
            }
#endif
            products<NT>(
                t.x0, t.x1, net_.tail_bias,
                [&](auto& sums, int x) {
                    for (int i = 0; i < 9; i++) {
                        const ptrdiff_t at = static_cast<ptrdiff_t>(x + i % 3 - 1 - left) * CS;
                        const size_t step = static_cast<size_t>(i) * net_.inputs * NT * LANES;
                        if (net_.tail_float)
                            sums.template add<CS, NT>(lines[i / 3] + at, net_.inputs,
                                                      static_cast<const float*>(net_.tail) + step);
                        else
                            sums.template add<CS, NT>(reinterpret_cast<const Kept*>(lines[i / 3]) + at, net_.inputs,
                                                      static_cast<const Kept*>(net_.tail) + step);
                    }
                },
                [&](int x, int n, Vector value) { shuffle<S>(x, band, n, value); });
        }
    }

    // Vector n of a pixel's outputs to their places in the picture.
    template <int S>
    __attribute__((always_inline)) void shuffle(int x, int y, int n, Vector value) {
        constexpr int GROUPS = 3 * S;
        const size_t wide = static_cast<size_t>(p_.w) * S, high = static_cast<size_t>(p_.h) * S;
        alignas(64) float found[LANES];
        store(found, value);
        auto place = [&](int group) {
            return result_ + (group / S * high + static_cast<size_t>(y) * S + group % S) * wide +
                   static_cast<size_t>(x) * S;
        };
        if constexpr (LANES % S == 0) {
            for (int k = 0; k < LANES / S; k++)
                if (const int group = n * LANES / S + k; group < GROUPS)
                    std::memcpy(place(group), found + k * S, sizeof(float) * S);
        } else {
            for (int k = 0; k < LANES; k++)
                if (const int i = n * LANES + k; i < GROUPS * S) place(i / S)[i % S] = found[k];
        }
    }

    const Net& net_;
    const Job& job_;
    const Plan p_;
    Kept *total_[MOST_BLOCKS], *reduced_[MOST_BLOCKS];
    float *wide_[MOST_BLOCKS], *pooled_[MOST_BLOCKS], *result_, *picture_ = nullptr;
    unsigned char* scratch_;
    // Squares in which the step's input, its output, and the picture have other bits than before.
    unsigned char *changed_ = nullptr, *next_ = nullptr, *picture_changed_ = nullptr, *map_changed_ = nullptr,
                  *rows_changed_ = nullptr;
};

}  // namespace rlfn
