// The folded network's layers for NVIDIA GPUs from compute capability 8.0 on, and planes to pictures and back.
//
// Compiled when it is first needed, by NVRTC, once for each variant: names in capitals that are defined nowhere here come
// from network.py and pictures.py. Activations are fp16, channels last, channels filled up with zeros to a multiple of 8.
// Sums are float32. How weights lie is said in layout.py. Tests compile the same text as C++ (tests/cuda_emulation.hpp),
// which stands for all between here and the end of the primitives.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;

#ifndef EMULATED
#define DEVICE static __device__ __forceinline__
#define KERNEL extern "C" __global__ void
#define SHARED(name) extern __shared__ uint4 name[]

// 16 bytes from global to shared memory behind the thread's back; zeros instead where `real` is false.
DEVICE void copy16(void* to, const void* from, bool real) {
    u32 address = (u32)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(real ? 16 : 0) : "memory");
}

DEVICE void copies_done() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// All `count` threads that know the barrier by this number wait for one another.
DEVICE void meet(int number, int count) { asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(count) : "memory"); }

// A fragment of 16 rows: lane i points to row i % 16, its first 8 columns (i < 16) or the next ones.
DEVICE void rows16(u32 (&a)[4], const void* row) {
    u32 address = (u32)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(address)
                 : "memory");
}

// c += a b of 16 x 16 and 16 x 8 values.
DEVICE void multiply16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same of 16 x 8 and 8 x 8 values: the first two parts of a fragment.
DEVICE void multiply8(float (&c)[4], const u32 (&a)[4], u32 b0) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b0));
}

DEVICE u32 pack(float low, float high) {
    u32 both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

DEVICE float low_of(u32 both) {
    float value;
    asm("{.reg .b16 a, b;\n mov.b32 {a, b}, %1;\n cvt.f32.f16 %0, a;}" : "=f"(value) : "r"(both));
    return value;
}

DEVICE float high_of(u32 both) {
    float value;
    asm("{.reg .b16 a, b;\n mov.b32 {a, b}, %1;\n cvt.f32.f16 %0, b;}" : "=f"(value) : "r"(both));
    return value;
}

DEVICE u32 larger(u32 one, u32 other) {
    u32 both;
    asm("max.f16x2 %0, %1, %2;" : "=r"(both) : "r"(one), "r"(other));
    return both;
}

DEVICE float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }
#endif

// ---------------------------------------------------------------- convolutions
#ifdef CONVOLUTION
// A 3x3 convolution. IN, OUT: groups of 8 channels that go in and come out. A tile is ROWS x 16 results, of which a warp computes
// PER_WARP rows; GROUPS tiles are in hand at once, each with warps of its own, and share the weights. ACTIVE: LeakyReLU; SKIP:
// something is added after it; SHUFFLE: the pixel shuffle's factor, or 0.
constexpr int ROWS = 8, PER_WARP = 2, MEMBERS = 32 * (ROWS / PER_WARP), THREADS = GROUPS * MEMBERS;
constexpr int TALL = (ROWS - 1) * STRIDE + 3, WIDE = 15 * STRIDE + 3;
// Bytes from pixel to pixel: an odd number of 16s, so that the 8 rows that are read at once lie in different banks.
constexpr int PITCH = 16 * (IN | 1);
constexpr int STEPS = (IN + 1) / 2, PAIRS = (OUT + 1) / 2, WEIGHTS = 9 * STEPS * PAIRS * 32;

struct Place {
    int image, top, left;
};

DEVICE Place place_of(int tile, int down, int across) {
    Place place;
    place.left = tile % across * 16;
    place.top = tile / across % down * ROWS;
    place.image = tile / across / down;
    return place;
}

// A row of a tile lies in one piece; so many threads take it, and so many rows are taken at once.
constexpr int LINE = WIDE * IN, TAKERS = LINE < MEMBERS ? LINE : MEMBERS, AT_ONCE = MEMBERS / TAKERS;

// A tile's pixels with those around it, zeros beyond the picture.
DEVICE void fetch_tile(char* to, const char* x, Place place, int height, int width, int thread) {
    if (thread >= TAKERS * AT_ONCE) return;
    const int upper = place.top * STRIDE - PADDING, left = place.left * STRIDE - PADDING;
    for (int i = thread % TAKERS; i < LINE; i += TAKERS) {
        int column = left + i / IN;
        bool across = column >= 0 && column < width;
        const char* from = x + ((((long long)place.image * height + upper) * width + column) * IN + i % IN) * 16;
        char* at = to + i / IN * PITCH + i % IN * 16;
#pragma unroll 3
        for (int row = thread / TAKERS; row < TALL; row += AT_ONCE) {
            bool real = across && upper + row >= 0 && upper + row < height;
            copy16(at + row * (WIDE * PITCH), real ? from + (long long)row * width * (16 * IN) : x, real);
        }
    }
}

DEVICE float finished(float value, float bias) {
    value += bias;
#if ACTIVE
    value = fmaxf(value, value * 0.05f);
#endif
    return value;
}

#if SHUFFLE
// Rows of the enlarged picture: tile pair k holds colour k, and this thread row `part` of each pixel's square.
DEVICE void put(float (&sum)[OUT][4], int half, const float* bias, const u32*, char* out, int image, int row, int column,
                int height, int width, int part) {
    float* picture = (float*)out;
#pragma unroll
    for (int colour = 0; colour < 3; colour++) {
        float value[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            value[i] = sum[2 * colour + i / 2][2 * half + i % 2] + bias[16 * colour + 4 * part + i];
        long long line = ((long long)(image * 3 + colour) * height + row) * SHUFFLE + part;
        float* at = picture + (line * width + column) * SHUFFLE;
        if (SHUFFLE == 4) {
            float4 four;
            four.x = value[0], four.y = value[1], four.z = value[2], four.w = value[3];
            *(float4*)at = four;
        } else if (part < SHUFFLE) {
#pragma unroll
            for (int i = 0; i < SHUFFLE; i++) at[i] = value[i];
        }
    }
}
#else
DEVICE long long pixel_of(int image, int row, int column, int height, int width) {
    return (((long long)image * height + row) * width + column) * (16 * OUT);
}

// Of a pixel's channels each of four threads (`part`) has 8 of each 32, 4 of each 16 left, 2 of 8 left: two for each tile of sums.
DEVICE void take(u32 (&two)[OUT], const char* pixel, int part) {
#pragma unroll
    for (int tile = 0; tile + 4 <= OUT; tile += 4) {
        uint4 four = *(const uint4*)(pixel + 16 * tile + 16 * part);
        two[tile] = four.x, two[tile + 1] = four.y, two[tile + 2] = four.z, two[tile + 3] = four.w;
    }
    if (OUT % 4 >= 2) {
        constexpr int tile = OUT % 4 >= 2 ? OUT / 4 * 4 : 0, next = OUT > 1 ? tile + 1 : 0;
        uint2 pair = *(const uint2*)(pixel + 16 * tile + 8 * part);
        two[tile] = pair.x, two[next] = pair.y;
    }
    if (OUT % 2) two[OUT - 1] = *(const u32*)(pixel + 16 * (OUT - 1) + 4 * part);
}

DEVICE u32 both_of(const float (&sum)[4], int half, const float* bias, u32 plus) {
    float low = finished(sum[2 * half], bias[0]), high = finished(sum[2 * half + 1], bias[1]);
#if SKIP
    low += low_of(plus), high += high_of(plus);
#endif
    return pack(low, high);
}

DEVICE void put(float (&sum)[OUT][4], int half, const float* bias, const u32* plus, char* out, int image, int row, int column,
                int height, int width, int part) {
    char* pixel = out + pixel_of(image, row, column, height, width);
#pragma unroll
    for (int tile = 0; tile + 4 <= OUT; tile += 4) {
        int first = 8 * tile + 8 * part;
        uint4 four;
        four.x = both_of(sum[tile], half, bias + first, plus[tile]);
        four.y = both_of(sum[tile + 1], half, bias + first + 2, plus[tile + 1]);
        four.z = both_of(sum[tile + 2], half, bias + first + 4, plus[tile + 2]);
        four.w = both_of(sum[tile + 3], half, bias + first + 6, plus[tile + 3]);
        *(uint4*)(pixel + 2 * first) = four;
    }
    if (OUT % 4 >= 2) {
        constexpr int tile = OUT % 4 >= 2 ? OUT / 4 * 4 : 0, next = OUT > 1 ? tile + 1 : 0;
        int first = 8 * tile + 4 * part;
        uint2 two;
        two.x = both_of(sum[tile], half, bias + first, plus[tile]);
        two.y = both_of(sum[next], half, bias + first + 2, plus[next]);
        *(uint2*)(pixel + 2 * first) = two;
    }
    if (OUT % 2) {
        int first = 8 * (OUT - 1) + 2 * part;
        *(u32*)(pixel + 2 * first) = both_of(sum[OUT - 1], half, bias + first, plus[OUT - 1]);
    }
}
#endif

// The sums of a warp's rows; `from` is what this lane reads of the pixel above and left of the first of them.
DEVICE void compute(float (&sum)[PER_WARP][OUT][4], const uint4* weight, const char* from) {
    // Not unrolled, or registers run out.
#pragma unroll 1
    for (int tap = 0; tap < 9; tap++) {
        const char* corner = from + (tap / 3 * WIDE + tap % 3) * PITCH;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            u32 a[PER_WARP][4];
#pragma unroll
            for (int i = 0; i < PER_WARP; i++) rows16(a[i], corner + i * (STRIDE * WIDE * PITCH) + step * 32);
#pragma unroll
            for (int pair = 0; pair < PAIRS; pair++) {
                uint4 b = weight[((tap * STEPS + step) * PAIRS + pair) * 32];
#pragma unroll
                for (int i = 0; i < PER_WARP; i++) {
                    // The last group of an odd number of them has 8 channels only.
                    bool eight = IN % 2 && step == STEPS - 1;
                    if (eight) multiply8(sum[i][2 * pair], a[i], b.x);
                    else multiply16(sum[i][2 * pair], a[i], b.x, b.y);
                    if (2 * pair + 1 < OUT) {
                        int other = 2 * pair + 1 < OUT ? 2 * pair + 1 : 0;
                        if (eight) multiply8(sum[i][other], a[i], b.z);
                        else multiply16(sum[i][other], a[i], b.z, b.w);
                    }
                }
            }
        }
    }
}

KERNEL __launch_bounds__(THREADS, 1) conv(const char* x, const uint4* weight, const float* bias, const char* skip, char* out,
                                          int count, int height, int width, int out_height, int out_width) {
    SHARED(shared);
    const int group = threadIdx.x / MEMBERS, thread = threadIdx.x % MEMBERS, lane = thread % 32;
    for (int i = threadIdx.x; i < WEIGHTS; i += THREADS) copy16(shared + i, weight + i, true);
    char* mine = (char*)(shared + WEIGHTS) + group * (TALL * WIDE * PITCH);
    const int down = (out_height + ROWS - 1) / ROWS, across = (out_width + 15) / 16;
    const int tiles = count * down * across, stride = gridDim.x * GROUPS;
    int tile = blockIdx.x * GROUPS + group;
    if (tile < tiles) fetch_tile(mine, x, place_of(tile, down, across), height, width, thread);
    copies_done();
    meet(0, THREADS);
    // This warp's first row; this lane has results of two pixels of each row, 8 columns apart.
    const int first = thread / 32 * PER_WARP, right = lane / 4;
    const char* from = mine + (first * STRIDE * WIDE + lane % 16 * STRIDE) * PITCH + lane / 16 * 16;
    for (; tile < tiles; tile += stride) {
        const Place place = place_of(tile, down, across);
        auto inside = [&](int i, int half) {
            return place.top + first + i < out_height && place.left + right + 8 * half < out_width;
        };
        u32 plus[PER_WARP][2][OUT];
#if SKIP
        // On its way while sums are made.
#pragma unroll
        for (int i = 0; i < PER_WARP; i++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                if (inside(i, half))
                    take(plus[i][half], skip + pixel_of(place.image, place.top + first + i, place.left + right + 8 * half,
                                                        out_height, out_width),
                         lane % 4);
            }
        }
#endif
        float sum[PER_WARP][OUT][4] = {};
        compute(sum, shared + lane, from);
        meet(1 + group, MEMBERS);
        // The next tile comes while this one's results go.
        if (tile + stride < tiles) fetch_tile(mine, x, place_of(tile + stride, down, across), height, width, thread);
#pragma unroll
        for (int i = 0; i < PER_WARP; i++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                if (inside(i, half))
                    put(sum[i], half, bias, plus[i][half], out, place.image, place.top + first + i,
                        place.left + right + 8 * half, out_height, out_width, lane % 4);
            }
        }
        copies_done();
        meet(1 + group, MEMBERS);
    }
}
#endif

// ---------------------------------------------------------------- ESA
#ifdef POOL
// The largest of 7x7 cells, every third one: (count, height, width, 16) to (count, rows, columns, 16). A thread has 8 channels.
KERNEL pool(const uint4* x, uint4* out, int count, int height, int width, int rows, int columns) {
    int thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= count * rows * columns * 2) return;
    int part = thread % 2, cell = thread / 2;
    int column = cell % columns * 3, row = cell / columns % rows * 3, image = cell / columns / rows;
    const uint4* at = x + (((long long)image * height + row) * width + column) * 2 + part;
    uint4 most = *at;
    for (int down = 0; down < 7; down++) {
#pragma unroll
        for (int across = 0; across < 7; across++) {
            uint4 next = at[(down * width + across) * 2];
            most.x = larger(most.x, next.x), most.y = larger(most.y, next.y);
            most.z = larger(most.z, next.z), most.w = larger(most.w, next.w);
        }
    }
    out[thread] = most;
}
#endif

#ifdef ATTEND
// A block's end: a 1x1 convolution of its sum times the sigmoid of what ESA makes of that sum and of its small map. GROUPS_OF_8
// channels; a warp takes 16 pixels at a time. Weights: value, direct, widen, one behind the other.
constexpr int CHANNELS = 8 * GROUPS_OF_8, TILES = GROUPS_OF_8, STEPS = (GROUPS_OF_8 + 1) / 2, PAIRS = (TILES + 1) / 2;
constexpr int VALUE = 0, DIRECT = STEPS * PAIRS * 32, WIDEN = DIRECT + STEPS * 32, ALL = WIDEN + PAIRS * 32;

// What of a pixel's channels this thread has, as parts of the fragments of all steps.
DEVICE void take(u32 (&a)[STEPS][4], int half, const char* pixel, int part) {
#pragma unroll
    for (int tile = 0; tile + 4 <= TILES; tile += 4) {
        uint4 four = *(const uint4*)(pixel + 16 * tile + 16 * part);
        a[tile / 2][half] = four.x, a[tile / 2][2 + half] = four.y;
        a[tile / 2 + 1][half] = four.z, a[tile / 2 + 1][2 + half] = four.w;
    }
    if (TILES % 4 >= 2) {
        constexpr int tile = TILES / 4 * 4, step = tile / 2 < STEPS ? tile / 2 : 0;
        uint2 two = *(const uint2*)(pixel + 16 * tile + 8 * part);
        a[step][half] = two.x, a[step][2 + half] = two.y;
    }
    if (TILES % 2) a[STEPS - 1][half] = *(const u32*)(pixel + 16 * (TILES - 1) + 4 * part);
}

DEVICE void product(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1, bool eight) {
    if (eight) multiply8(sum, a, b0);
    else multiply16(sum, a, b0, b1);
}

DEVICE u32 scaled(const float (&value)[4], const float (&share)[4], int half, const float* bias, const float* share_bias) {
    return pack((value[2 * half] + bias[0]) * sigmoid(share[2 * half] + share_bias[0]),
                (value[2 * half + 1] + bias[1]) * sigmoid(share[2 * half + 1] + share_bias[1]));
}

KERNEL __launch_bounds__(256) attend(const char* x, const uint4* weight, const float* bias, const float* direct_bias, const float* widen_bias,
              const char* small, const int* row_first, const float* row_share, const int* column_first,
              const float* column_share, char* out, int count, int height, int width, int rows, int columns, int tables) {
    SHARED(shared);
    for (int i = threadIdx.x; i < ALL; i += blockDim.x) shared[i] = weight[i];
    meet(0, blockDim.x);
    const int lane = threadIdx.x % 32, part = lane % 4, warps = blockDim.x / 32;
    const int pixels = count * height * width, fragments = (pixels + 15) / 16;
    for (int i = blockIdx.x * warps + threadIdx.x / 32; i < fragments; i += gridDim.x * warps) {
        u32 a[STEPS][4], middle[4];
        float value[TILES][4] = {}, share[TILES][4] = {}, direct[2][4] = {};
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int pixel = 16 * i + lane / 4 + 8 * half;
            pixel = pixel < pixels ? pixel : pixels - 1;
            take(a, half, x + (long long)pixel * (2 * CHANNELS), part);
            // The small map's four cells around the pixel, four channels of each.
            int column = pixel % width, row = pixel / width % height, image = pixel / width / height;
            int top = row_first[image * tables * height + row], left = column_first[image * tables * width + column];
            float lower = row_share[image * tables * height + row], right = column_share[image * tables * width + column];
            int below = top + 1 < rows ? 1 : 0, beside = left + 1 < columns ? 1 : 0;
            const uint2* corner = (const uint2*)(small + (((long long)image * rows + top) * columns + left) * 32) + part;
            uint2 cells[4] = {corner[0], corner[beside * 4], corner[below * columns * 4],
                              corner[(below * columns + beside) * 4]};
            float shares[4] = {(1 - lower) * (1 - right), (1 - lower) * right, lower * (1 - right), lower * right};
#pragma unroll
            for (int k = 0; k < 4; k++) {
                direct[0][2 * half] += shares[k] * low_of(cells[k].x);
                direct[0][2 * half + 1] += shares[k] * high_of(cells[k].x);
                direct[1][2 * half] += shares[k] * low_of(cells[k].y);
                direct[1][2 * half + 1] += shares[k] * high_of(cells[k].y);
            }
        }
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            bool eight = TILES % 2 && step == STEPS - 1;
            uint4 b = shared[DIRECT + step * 32 + lane];
            product(direct[0], a[step], b.x, b.y, eight);
            product(direct[1], a[step], b.z, b.w, eight);
#pragma unroll
            for (int pair = 0; pair < PAIRS; pair++) {
                b = shared[VALUE + (step * PAIRS + pair) * 32 + lane];
                product(value[2 * pair], a[step], b.x, b.y, eight);
                if (2 * pair + 1 < TILES) product(value[2 * pair + 1 < TILES ? 2 * pair + 1 : 0], a[step], b.z, b.w, eight);
            }
        }
        // Sums of one product are fragments of the next: rows stay where they are, tile 0 and 1 are its columns.
        const float* plus = direct_bias + 4 * part;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            middle[half] = pack(direct[0][2 * half] + plus[0], direct[0][2 * half + 1] + plus[1]);
            middle[2 + half] = pack(direct[1][2 * half] + plus[2], direct[1][2 * half + 1] + plus[3]);
        }
#pragma unroll
        for (int pair = 0; pair < PAIRS; pair++) {
            uint4 b = shared[WIDEN + pair * 32 + lane];
            multiply16(share[2 * pair], middle, b.x, b.y);
            if (2 * pair + 1 < TILES) multiply16(share[2 * pair + 1 < TILES ? 2 * pair + 1 : 0], middle, b.z, b.w);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int pixel = 16 * i + lane / 4 + 8 * half;
            if (pixel >= pixels) continue;
            char* to = out + (long long)pixel * (2 * CHANNELS);
#pragma unroll
            for (int tile = 0; tile + 4 <= TILES; tile += 4) {
                int first = 8 * tile + 8 * part;
                const float *b = bias + first, *w = widen_bias + first;
                uint4 four;
                four.x = scaled(value[tile], share[tile], half, b, w);
                four.y = scaled(value[tile + 1], share[tile + 1], half, b + 2, w + 2);
                four.z = scaled(value[tile + 2], share[tile + 2], half, b + 4, w + 4);
                four.w = scaled(value[tile + 3], share[tile + 3], half, b + 6, w + 6);
                *(uint4*)(to + 2 * first) = four;
            }
            if (TILES % 4 >= 2) {
                constexpr int tile = TILES % 4 >= 2 ? TILES / 4 * 4 : 0, next = TILES > 1 ? tile + 1 : 0;
                int first = 8 * tile + 4 * part;
                uint2 two;
                two.x = scaled(value[tile], share[tile], half, bias + first, widen_bias + first);
                two.y = scaled(value[next], share[next], half, bias + first + 2, widen_bias + first + 2);
                *(uint2*)(to + 2 * first) = two;
            }
            if (TILES % 2) {
                int first = 8 * (TILES - 1) + 2 * part;
                *(u32*)(to + 2 * first) =
                    scaled(value[TILES - 1], share[TILES - 1], half, bias + first, widen_bias + first);
            }
        }
    }
}
#endif

// ---------------------------------------------------------------- pictures
#ifdef PIXELS
// Planar float32 RGB (count, 3, pixels) to 8 channels a pixel, the last five zero, times a gain.
KERNEL pixels(const float* rgb, uint4* out, int count, int pixels, float gain) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count * pixels) return;
    const float* red = rgb + (long long)(i / pixels) * 3 * pixels + i % pixels;
    uint4 eight = {pack(red[0] * gain, red[pixels] * gain), pack(red[2 * (long long)pixels] * gain, 0.0f), 0, 0};
    out[i] = eight;
}
#endif

#ifdef SAMPLES
// A frame's Y, Cb and Cr to planar float32 RGB, 0..255 and beyond: chroma is interpolated by up to 4 taps each way. `numbers`:
// black, gain of luma, zero and gain of chroma, what Cr adds to red, Cb and Cr to green, then for even and for
// odd columns, and for even and for odd rows, the first tap's place and four weights, at last what Cb adds to blue. HALF_X,
// HALF_Y: chroma has half of them.
KERNEL samples(const SAMPLE* luma, const SAMPLE* cb, const SAMPLE* cr, const float* numbers, float* rgb, int height, int width,
               int rows, int columns) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= height * width) return;
    int row = i / width, column = i % width;
    const float *along = numbers + 7 + column % 2 * 5, *down = numbers + 17 + row % 2 * 5;
    float u = 0, v = 0;
#pragma unroll
    for (int j = 0; j < (HALF_Y ? 4 : 1); j++) {
        int y = HALF_Y ? min(max(row / 2 + (int)down[0] + j, 0), rows - 1) : row;
        float u_row = 0, v_row = 0;
#pragma unroll
        for (int k = 0; k < (HALF_X ? 4 : 1); k++) {
            int x = HALF_X ? min(max(column / 2 + (int)along[0] + k, 0), columns - 1) : column;
            float weight = HALF_X ? along[1 + k] : 1.0f;
            u_row += weight * (float)cb[y * columns + x];
            v_row += weight * (float)cr[y * columns + x];
        }
        float weight = HALF_Y ? down[1 + j] : 1.0f;
        u += weight * u_row, v += weight * v_row;
    }
    float y = ((float)luma[i] - numbers[0]) * numbers[1];
    u = (u - numbers[2]) * numbers[3], v = (v - numbers[2]) * numbers[3];
    long long plane = (long long)height * width;
    rgb[i] = y + numbers[4] * v;
    rgb[plane + i] = y + numbers[5] * u + numbers[6] * v;
    rgb[2 * plane + i] = y + numbers[27] * u;
}
#endif

#ifdef PLANES
// Planar float32 RGB to Y, Cb and Cr, quantised. Chroma: COUNT_X taps from column STEP_X * x + FIRST_X on, the same down, the
// picture's edges going on. `numbers`: weights of red, green and blue, gains of Y, Cb and Cr, offsets of luma and chroma, the
// largest code value, then the taps along and down, 8 places each. What went around the network, enlarged SCALE times, is added where `any` says so.
constexpr int ACROSS = 64, DOWN = 32, FEWER = ACROSS / STEP_X, LESS = DOWN / STEP_Y;
constexpr int REGION_X = (FEWER - 1) * STEP_X + COUNT_X, REGION_Y = (LESS - 1) * STEP_Y + COUNT_Y;

DEVICE SAMPLE code(float value, float top) {
    // Ties go to the even one, as everywhere here; a value that is not finite gives some code, never a trap.
    return (SAMPLE)(int)fminf(fmaxf(rintf(value), 0.0f), top);
}

DEVICE float around(const float* excess, int row, int column, int rows, int columns) {
    float y = fmaxf((row + 0.5f) / SCALE - 0.5f, 0.0f), x = fmaxf((column + 0.5f) / SCALE - 0.5f, 0.0f);
    int top = (int)y, left = (int)x, below = min(top + 1, rows - 1), beside = min(left + 1, columns - 1);
    float lower = y - top, right = x - left;
    return (1 - lower) * ((1 - right) * excess[top * columns + left] + right * excess[top * columns + beside]) +
           lower * ((1 - right) * excess[below * columns + left] + right * excess[below * columns + beside]);
}

KERNEL __launch_bounds__(256) planes(const float* rgb, int plane, int pitch, const float* excess, const u8* any,
                                     const float* numbers, SAMPLE* luma, SAMPLE* cb, SAMPLE* cr, int height, int width) {
    __shared__ float blues[REGION_Y][REGION_X], reds[REGION_Y][REGION_X], wide[2][REGION_Y][FEWER];
    const float *along = numbers + 9, *down = numbers + 17;
    const float red = numbers[0], green = numbers[1], blue = numbers[2], top = numbers[8];
    const int left = blockIdx.x * ACROSS, upper = blockIdx.y * DOWN;
    const int rows = (height + STEP_Y - 1) / STEP_Y, columns = (width + STEP_X - 1) / STEP_X;
    const bool more = excess && *any;
    const int small = (height / SCALE) * (width / SCALE);
    for (int i = threadIdx.x; i < REGION_Y * REGION_X; i += 256) {
        int y = i / REGION_X, x = i % REGION_X, row = upper + y + FIRST_Y, column = left + x + FIRST_X;
        bool own = row >= upper && row < min(upper + DOWN, height) && column >= left && column < min(left + ACROSS, width);
        row = min(max(row, 0), height - 1), column = min(max(column, 0), width - 1);
        const float* at = rgb + (long long)row * pitch + column;
        float r = at[0], g = at[plane], b = at[2 * (long long)plane];
        if (more) {
            r += around(excess, row, column, height / SCALE, width / SCALE);
            g += around(excess + small, row, column, height / SCALE, width / SCALE);
            b += around(excess + 2 * small, row, column, height / SCALE, width / SCALE);
        }
        float light = r * red + g * green + b * blue;
        if (own) luma[(long long)row * width + column] = code(light * numbers[3] + numbers[6], top);
        blues[y][x] = b - light, reds[y][x] = r - light;
    }
    meet(0, 256);
    for (int i = threadIdx.x; i < REGION_Y * FEWER; i += 256) {
        int y = i / FEWER, x = i % FEWER;
        float u = 0, v = 0;
#pragma unroll
        for (int k = 0; k < COUNT_X; k++) u += along[k] * blues[y][x * STEP_X + k], v += along[k] * reds[y][x * STEP_X + k];
        wide[0][y][x] = u, wide[1][y][x] = v;
    }
    meet(0, 256);
    for (int i = threadIdx.x; i < LESS * FEWER; i += 256) {
        int y = i / FEWER, x = i % FEWER, row = upper / STEP_Y + y, column = left / STEP_X + x;
        if (row >= rows || column >= columns) continue;
        float u = 0, v = 0;
#pragma unroll
        for (int k = 0; k < COUNT_Y; k++) u += down[k] * wide[0][y * STEP_Y + k][x], v += down[k] * wide[1][y * STEP_Y + k][x];
        cb[(long long)row * columns + column] = code(u * numbers[4] + numbers[7], top);
        cr[(long long)row * columns + column] = code(v * numbers[5] + numbers[7], top);
    }
}
#endif
