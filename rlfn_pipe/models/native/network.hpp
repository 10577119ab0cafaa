// An RLFN on a processor with AVX-512 bf16, the whole network in one call. See rlfn_pipe/models/native/network.py.
//
// A picture goes through in passes, since ESA's small map needs all of it: the first layer; for each block its three
// convolutions, tile by tile, row by row, with the block before's attention computed as it is read; then the small map;
// at last the two convolutions of the end. What a pass keeps in between are a few rows that stay in the second-level
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
    // With `job.memory` each block keeps its own layers there, without only the last two blocks' are held.
    Network(const Net& net, const Job& job) : net_(net), job_(job), p_(job) {
        unsigned char* at = job.memory ? job.memory : job.workspace;
        auto take = [&](size_t bytes) {
            unsigned char* here = at;
            at += aligned(bytes);
            return here;
        };
        const Sizes sizes(p_);
        shallow_ = reinterpret_cast<bf16*>(take(sizes.total));
        for (int k = 0; k < net.blocks; k++) {
            if (k >= 2 && !job.memory) {
                total_[k] = total_[k - 2], reduced_[k] = reduced_[k - 2];
                wide_[k] = wide_[k - 2], pooled_[k] = pooled_[k - 2];
                continue;
            }
            total_[k] = reinterpret_cast<bf16*>(take(sizes.total));
            reduced_[k] = reinterpret_cast<bf16*>(take(sizes.reduced));
            wide_[k] = reinterpret_cast<float*>(take(sizes.wide));
            pooled_[k] = reinterpret_cast<float*>(take(sizes.pooled));
        }
        result_ = job.result;
        if (job.memory) {
            result_ = reinterpret_cast<float*>(take(sizes.result(net.scale)));
            picture_ = reinterpret_cast<float*>(take(sizes.picture));
            changed_ = take(p_.squares()), next_ = take(p_.squares()), first_changed_ = take(p_.squares());
            map_changed_ = take(static_cast<size_t>(p_.h3) * p_.squares_along());
            rows_changed_ = take(p_.h2);
            at = job.workspace;
        }
        scratch_ = at;
    }

    struct Sizes {
        size_t total, reduced, wide, pooled, picture;
        explicit Sizes(const Plan& p) {
            const size_t pixels = static_cast<size_t>(p.h) * p.w;
            total = aligned(pixels * CS * sizeof(bf16)), reduced = aligned(pixels * F16 * sizeof(bf16));
            wide = aligned(sizeof(float) * p.h3 * p.w * F16), pooled = aligned(sizeof(float) * p.h2 * p.w3 * F16);
            picture = aligned(pixels * 3 * sizeof(float));
        }
        size_t block() const { return total + reduced + wide + pooled; }
        size_t result(int scale) const { return picture * scale * scale; }
    };

    static size_t workspace(const Net& net, const Job& job) {
        const Plan p(job);
        const Sizes sizes(p);
        const size_t frames = sizes.total + std::min(net.blocks, 2) * sizes.block();
        return Scratch<NV>::bytes(p) * p.threads + (job.memory ? 0 : frames);
    }

    static size_t memory(const Net& net, const Job& job) {
        const Plan p(job);
        const Sizes sizes(p);
        return sizes.total + net.blocks * sizes.block() + sizes.result(net.scale) + sizes.picture +
               3 * aligned(p.squares()) + aligned(static_cast<size_t>(p.h3) * p.squares_along()) + aligned(p.h2);
    }

    // The whole picture.
    void run(Pool& pool) {
        all(pool, p_.h, [&](int y, Scratch<NV>& s) { head_row(y, 0, p_.w, s); });
        for (int k = 0; k < net_.blocks; k++) {
            all(pool, p_.tiles(), [&](int i, Scratch<NV>& s) { block_tile<false>(k, p_.tile(i), s); });
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

    // Narrows a vector into its place; marks the pixel's square where the bits become others.
    template <bool TRACK>
    void put(bf16* to, __m512 value, int x, int y) {
        const __m256i made = narrow(value);
        auto* place = reinterpret_cast<__m256i*>(to);
        if (TRACK && _mm256_cmpneq_epi16_mask(made, _mm256_loadu_si256(place)))
            next_[static_cast<size_t>(y / SQUARE) * p_.squares_along() + x / SQUARE] = 1;
        _mm256_storeu_si256(place, made);
    }

    // ---------------------------------------------------------------- the first layer

    // Pixels first .. last of row y.
    template <bool TRACK = false>
    void head_row(int y, int first, int last, Scratch<NV>& s) {
        const int w = p_.w, step = last - first + 18;
        float* lines = s.rest;
        for (int c = 0; c < 3; c++)
            for (int k = 0; k < 3; k++) {
                float* line = lines + (c * 3 + k) * step;
                const int row = y + k - 1, from = std::max(0, first - 1), to = std::min(w, last + 1);
                std::memset(line, 0, sizeof(float) * (last - first + 2));
                if (row >= 0 && row < p_.h)
                    std::memcpy(line + from - first + 1,
                                job_.picture + (static_cast<size_t>(c) * p_.h + row) * w + from,
                                sizeof(float) * (to - from));
            }
        in_groups<ROWS<NV>>(first, last, [&](auto count, int x) {
            constexpr int M = decltype(count)::value;
            Sums<M, NV> sum;
            sum.begin(net_.head_bias);
            for (int t = 0; t < 9; t++) sum.template add<1>(lines + t * step + x - first, 3, net_.head + t * 3 * CS);
            for (int m = 0; m < M; m++)
                for (int n = 0; n < NV; n++)
                    put<TRACK>(shallow_ + (static_cast<size_t>(y) * w + x + m) * CS + n * LANES, sum.v[m][n], x + m, y);
        });
    }

    // ---------------------------------------------------------------- a block's input, row by row

    // Pixels first .. last of row y of what block k reads (k beyond the last: the end), float32; `line` begins at
    // `left`.
    void input_row(int k, int y, int first, int last, float* line, int left) {
        const size_t row = static_cast<size_t>(y) * p_.w;
        if (k == 0) {
            for (int x = first; x < last; x++)
                for (int n = 0; n < NV; n++)
                    store(line + (x - left) * CS + n * LANES, widen(shallow_ + (row + x) * CS + n * LANES));
            return;
        }
        const Block& b = net_.block[k - 1];
        const bf16 *total = total_[k - 1] + row * CS, *reduced = reduced_[k - 1] + row * F16;
        const float* above = wide_[k - 1] + static_cast<size_t>(job_.stretch.row[y]) * p_.w * F16;
        const float* below = job_.stretch.row[y] + 1 < p_.h3 ? above + static_cast<size_t>(p_.w) * F16 : above;
        const __m512 upper = splat(job_.stretch.row_share[2 * y]), lower = splat(job_.stretch.row_share[2 * y + 1]);
        in_groups<ROWS<NV>>(first, last, [&](auto count, int x) {
            constexpr int M = decltype(count)::value;
            alignas(64) bf16 hint[M * F16];
            alignas(64) float mask[M * CS];
            {
                Sums<M, 1> sum;
                sum.begin(b.conv_f_bias);
                sum.template add<F16>(reduced + static_cast<size_t>(x) * F16, F16 / 2, b.conv_f);
                for (int m = 0; m < M; m++) {
                    __m512 map = _mm512_fmadd_ps(upper, load(above + (x + m) * F16),
                                                 _mm512_mul_ps(lower, load(below + (x + m) * F16)));
                    store_narrow(hint + m * F16, _mm512_add_ps(sum.v[m][0], map));
                }
            }
            {
                Sums<M, NV> sum;
                sum.begin(b.conv4_bias);
                sum.template add<F16>(hint, F16 / 2, b.conv4);
                for (int m = 0; m < M; m++)
                    for (int n = 0; n < NV; n++) store(mask + m * CS + n * LANES, sigmoid(sum.v[m][n]));
            }
            Sums<M, NV> sum;
            sum.begin(b.c5_bias);
            sum.template add<CS>(total + static_cast<size_t>(x) * CS, net_.pairs, b.c5);
            for (int m = 0; m < M; m++)
                for (int n = 0; n < NV; n++)
                    store(line + (x + m - left) * CS + n * LANES,
                          _mm512_mul_ps(sum.v[m][n], load(mask + m * CS + n * LANES)));
        });
    }

    // Transformed rows y - 1 .. y + 1 of a ring; zeros stand for rows beyond the picture.
    struct Three {
        const bf16* rows[3];
    };
    Three around(bf16* const ring[3], int y, const Scratch<NV>& s) const {
        return {{y > 0 ? ring[(y - 1) % 3] : s.nothing, ring[y % 3], y + 1 < p_.h ? ring[(y + 1) % 3] : s.nothing}};
    }

    // Quads `from` .. `to`, counted from `left`, as far as they lie in the picture.
    struct Range {
        int first, last;
    };
    Range within(int left, int from, int to) const {
        return {std::max(from, -left / QUAD), std::min(to, (p_.w - left + QUAD - 1) / QUAD)};
    }

    void clear(Scratch<NV>& s) const {
        for (float* line : s.x) std::memset(line, 0, Scratch<NV>::line(p_));
        for (float* line : s.y) std::memset(line, 0, Scratch<NV>::line(p_));
        std::memset(s.nothing, 0, Scratch<NV>::zeros(p_));
    }

    // ---------------------------------------------------------------- a block's three convolutions

    template <bool TRACK>
    void block_tile(int k, const Tile& t, Scratch<NV>& s) {
        const Block& b = net_.block[k];
        const int h = p_.h, w = p_.w, left = t.x0 - 3 * QUAD, n = (t.x1 - t.x0 + QUAD - 1) / QUAD;
        const int right = w - left;
        const Range first = within(left, 1, 5 + n), second = within(left, 2, 4 + n), third = within(left, 3, 3 + n);
        const int xa = std::max(0, left + 3), xb = std::min(w, t.x0 + n * QUAD + 9);
        const __m512 slope = splat(SLOPE);
        auto leaky = [&](__m512 v) { return _mm512_max_ps(v, _mm512_mul_ps(v, slope)); };
        clear(s);
        for (int a = t.y0 - 3; a < t.y1 + 3; a++) {
            if (a >= 0 && a < h) {
                input_row(k, a, xa, xb, s.x[a % 4], left);
                to_products<NV>(s.x[a % 4], s.ring[0][a % 3], p_.quads, first.first, first.last);
            }
            auto inner = [&](int stage, int y, const Range& now, const Range& next, float* line, int pairs) {
                const Three in = around(s.ring[stage], y, s);
                const float* bias = b.conv_bias[stage];
                convolve<NV>(
                    in.rows, p_.quads, b.conv[stage], pairs, now.first, now.last, s.sum,
                    [&](int x, int v, __m512 value) {
                        if (x < right)
                            store(line + x * CS + v * LANES, leaky(_mm512_add_ps(value, load(bias + v * LANES))));
                    },
                    [&, from = next.first](int quad) mutable {
                        // A quad reads a pixel of the next one.
                        const int to = quad == now.last ? next.last : std::min(quad - 1, next.last);
                        to_products<NV>(line, s.ring[stage + 1][y % 3], p_.quads, from, to);
                        from = std::max(from, to);
                    });
            };
            const int y1 = a - 1, y2 = a - 2, y = a - 3;
            if (y1 >= std::max(0, t.y0 - 2) && y1 < std::min(h, t.y1 + 2))
                inner(0, y1, first, second, s.y[0], net_.pairs);
            if (y2 >= std::max(0, t.y0 - 1) && y2 < std::min(h, t.y1 + 1))
                inner(1, y2, second, third, s.y[1], net_.mid_pairs);
            if (y < t.y0) continue;
            const Three in = around(s.ring[2], y, s);
            const size_t row = static_cast<size_t>(y) * w;
            bf16* total = total_[k] + row * CS;
            const float* skip = s.x[y % 4];
            convolve<NV>(
                in.rows, p_.quads, b.conv[2], net_.mid_pairs, third.first, third.last, s.sum,
                [&](int x, int v, __m512 value) {
                    if (x >= right) return;
                    value = leaky(_mm512_add_ps(value, load(b.conv_bias[2] + v * LANES)));
                    value = _mm512_add_ps(value, load(skip + x * CS + v * LANES));
                    put<TRACK>(total + static_cast<ptrdiff_t>(left + x) * CS + v * LANES, value, left + x, y);
                },
                [&, from = t.x0](int quad) mutable {
                    const int to = std::min(left + quad * QUAD, t.x1);
                    reduce(b, total, reduced_[k] + row * F16, from, to);
                    from = to;
                });
        }
    }

    // ESA's first convolution for pixels first .. last of a row, `c5` before it folded in.
    void reduce(const Block& b, const bf16* total, bf16* reduced, int first, int last) {
        in_groups<ROWS<1>>(first, last, [&](auto count, int x) {
            constexpr int M = decltype(count)::value;
            Sums<M, 1> sum;
            sum.begin(b.reduce_bias);
            sum.template add<CS>(total + static_cast<size_t>(x) * CS, net_.pairs, b.reduce);
            for (int m = 0; m < M; m++) store_narrow(reduced + static_cast<size_t>(x + m) * F16, sum.v[m][0]);
        });
    }

    // ---------------------------------------------------------------- ESA's small map

    // Row y of the strided convolution, and the greatest of seven neighbours along it. Whether its bits are others now.
    bool pooled_row(int k, int y, Scratch<NV>& s) {
        const Block& b = net_.block[k];
        const bf16* reduced = reduced_[k];
        float* line = s.rest;
        in_groups<ROWS<1>>(0, p_.w2, [&](auto count, int x) {
            constexpr int M = decltype(count)::value;
            Sums<M, 1> sum;
            sum.begin(b.conv2_bias);
            for (int t = 0; t < 9; t++) {
                const bf16* from = reduced + (static_cast<size_t>(2 * y + t / 3) * p_.w + 2 * x + t % 3) * F16;
                sum.template add<2 * F16>(from, F16 / 2, b.conv2 + t * F16 * F16);
            }
            for (int m = 0; m < M; m++) store(line + (x + m) * F16, sum.v[m][0]);
        });
        bool others = false;
        for (int x = 0; x < p_.w3; x++) {
            __m512 most = load(line + 3 * x * F16);
            for (int i = 1; i < 7; i++) most = _mm512_max_ps(most, load(line + (3 * x + i) * F16));
            others |= replace(pooled_[k] + (static_cast<size_t>(y) * p_.w3 + x) * F16, most);
        }
        return others;
    }

    static bool replace(float* place, __m512 made) {
        const bool others = _mm512_cmpneq_epi32_mask(_mm512_castps_si512(made), _mm512_castps_si512(load(place)));
        store(place, made);
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
                __m512 most = load(pooled_[k] + (static_cast<size_t>(3 * row) * w3 + column) * F16);
                for (int j = 1; j < 7; j++)
                    most =
                        _mm512_max_ps(most, load(pooled_[k] + (static_cast<size_t>(3 * row + j) * w3 + column) * F16));
                const float share = job_.stretch.border[(y + i) * (w3 + 2) + x];
                store(lines + i * step + x * F16, _mm512_mul_ps(most, splat(share)));
            }
        }
        float* map = lines + 3 * step;
        in_groups<ROWS<1>>(0, w3, [&](auto count, int x) {
            constexpr int M = decltype(count)::value;
            Sums<M, 1> sum;
            sum.begin(b.conv3_bias);
            for (int t = 0; t < 9; t++)
                sum.template add<F16>(lines + t / 3 * step + (x + t % 3) * F16, F16, b.conv3 + t * F16 * F16);
            for (int m = 0; m < M; m++) store(map + (x + m) * F16, sum.v[m][0]);
        });
        float* wide = wide_[k] + static_cast<size_t>(y) * p_.w * F16;
        for (int x = 0; x < p_.w; x++) {
            const int from = job_.stretch.column[x], next = std::min(from + 1, w3 - 1);
            const __m512 a = splat(job_.stretch.column_share[2 * x]), c = splat(job_.stretch.column_share[2 * x + 1]);
            const bool others = replace(
                wide + x * F16, _mm512_fmadd_ps(a, load(map + from * F16), _mm512_mul_ps(c, load(map + next * F16))));
            if (marks && others) marks[x / SQUARE] = 1;
        }
    }

    // ---------------------------------------------------------------- the end

    void end_tile(const Tile& t, Scratch<NV>& s) {
        const int h = p_.h, w = p_.w, left = t.x0 - 3 * QUAD, n = (t.x1 - t.x0 + QUAD - 1) / QUAD;
        const int right = w - left;
        const Range needed = within(left, 2, 4 + n);
        const int xa = std::max(0, left + 7), xb = std::min(w, t.x0 + n * QUAD + 5);
        clear(s);
        for (int a = t.y0 - 2; a < t.y1 + 2; a++) {
            if (a >= 0 && a < h) {
                input_row(net_.blocks, a, xa, xb, s.x[0], left);
                to_products<NV>(s.x[0], s.ring[0][a % 3], p_.quads, needed.first, needed.last);
            }
            const int b = a - 1, y = a - 2;
            if (b >= std::max(0, t.y0 - 1) && b < std::min(h, t.y1 + 1)) {
                const Three in = around(s.ring[0], b, s);
                const bf16* shallow = shallow_ + static_cast<size_t>(b) * w * CS;
                float* line = s.y[b % 3];
                convolve<NV>(
                    in.rows, p_.quads, net_.body, net_.pairs, needed.first, needed.last, s.sum,
                    [&](int x, int v, __m512 value) {
                        if (x >= right) return;
                        value = _mm512_add_ps(value, load(net_.body_bias + v * LANES));
                        value =
                            _mm512_add_ps(value, widen(shallow + static_cast<ptrdiff_t>(left + x) * CS + v * LANES));
                        if (net_.tail_float)
                            store(line + x * CS + v * LANES, value);
                        else
                            store_narrow(reinterpret_cast<bf16*>(line) + x * CS + v * LANES, value);
                    },
                    [](int) {});
            }
            if (y < t.y0) continue;
            const float* zeros = reinterpret_cast<const float*>(s.nothing);
            const float* lines[3] = {y > 0 ? s.y[(y - 1) % 3] : zeros, s.y[y % 3],
                                     y + 1 < h ? s.y[(y + 1) % 3] : zeros};
            switch (net_.tail_vectors) {
                case 1:
                    tail_row<1>(lines, y, t, left);
                    break;
                case 2:
                    tail_row<2>(lines, y, t, left);
                    break;
                default:
                    tail_row<3>(lines, y, t, left);
                    break;
            }
        }
    }

    template <int NT>
    void tail_row(const float* const lines[3], int y, const Tile& t, int left) {
        const int scale = net_.scale;
        const size_t wide = static_cast<size_t>(p_.w) * scale, high = static_cast<size_t>(p_.h) * scale;
        in_groups<ROWS<NT>>(t.x0, t.x1, [&](auto count, int x) {
            constexpr int M = decltype(count)::value;
            Sums<M, NT> sum;
            sum.begin(net_.tail_bias);
            for (int i = 0; i < 9; i++) {
                const ptrdiff_t at = static_cast<ptrdiff_t>(x + i % 3 - 1 - left) * CS;
                if (net_.tail_float)
                    sum.template add<CS>(
                        lines[i / 3] + at, 2 * net_.pairs,
                        static_cast<const float*>(net_.tail) + static_cast<size_t>(i) * 2 * net_.pairs * NT * LANES);
                else
                    sum.template add<CS>(
                        reinterpret_cast<const bf16*>(lines[i / 3]) + at, net_.pairs,
                        static_cast<const bf16*>(net_.tail) + static_cast<size_t>(i) * net_.pairs * NT * LANES * 2);
            }
            alignas(64) float found[M * NT * LANES];
            for (int m = 0; m < M; m++)
                for (int n = 0; n < NT; n++) store(found + (m * NT + n) * LANES, sum.v[m][n]);
            auto shuffle = [&](auto side) {
                constexpr int S = decltype(side)::value;
                for (int i = 0; i < 3 * S; i++) {
                    float* to = result_ + (i / S * high + static_cast<size_t>(y) * S + i % S) * wide +
                                static_cast<size_t>(x) * S;
                    for (int m = 0; m < M; m++)
                        std::memcpy(to + m * S, found + m * NT * LANES + i * S, sizeof(float) * S);
                }
            };
            if (scale == 4)
                shuffle(std::integral_constant<int, 4>{});
            else if (scale == 3)
                shuffle(std::integral_constant<int, 3>{});
            else
                shuffle(std::integral_constant<int, 2>{});
        });
    }

    const Net& net_;
    const Job& job_;
    const Plan p_;
    bf16 *shallow_, *total_[MOST_BLOCKS], *reduced_[MOST_BLOCKS];
    float *wide_[MOST_BLOCKS], *pooled_[MOST_BLOCKS], *result_, *picture_ = nullptr;
    unsigned char* scratch_;
    // Squares in which the step's input, its output, and the first layer's output have other bits than before.
    unsigned char *changed_ = nullptr, *next_ = nullptr, *first_changed_ = nullptr, *map_changed_ = nullptr,
                  *rows_changed_ = nullptr;
};

}  // namespace rlfn
