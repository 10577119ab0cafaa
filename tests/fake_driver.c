/* A stand-in for NVIDIA's driver as libav loads it (libcuda, libnvcuvid): its memory is the host's.
 *
 * Pictures are not decoded. A list that the test has made tells what the data of a coded picture mean: so all that
 * libav and the project do around the driver is real, and a frame is right only where all of that is.
 * `fake_driver.py` adds the functions that nobody here calls, each of which succeeds.
 */
#include <stdlib.h>
#include <string.h>

typedef unsigned long long Address;

/* ------------------------------------------------------------------ contexts */

static int primary, primary_active, others;
static unsigned primary_flags;
static void *current;

/* PyTorch's runtime was here first: the primary context exists, with its flags, and is current. */
void fake_runtime(unsigned flags) {
    primary_active = 1;
    primary_flags = flags;
    current = &primary;
}

/* How many contexts were made besides. */
int fake_contexts(void) { return others; }

int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDeviceGet(int *device, int number) { return *device = number, number ? 101 : 0; }
int cuDeviceGetName(char *name, int length, int device) { return strncpy(name, "stand-in", length), 0; }
int cuDeviceComputeCapability(int *major, int *minor, int device) { return *major = 9, *minor = 0, 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { return *value = 256, 0; }
int cuCtxCreate_v2(void **context, unsigned flags, int device) { return others++, current = *context = malloc(1), 0; }
int cuCtxDestroy_v2(void *context) { return free(context), 0; }
int cuCtxGetCurrent(void **context) { return *context = current, 0; }
int cuCtxGetDevice(int *device) { return *device = 0, 0; }
int cuCtxPushCurrent_v2(void *context) { return current = context, 0; }
int cuCtxPopCurrent_v2(void **context) { return context ? *context = current, 0 : 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    return *flags = primary_flags, *active = primary_active, 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = &primary, 0; }
int cuGetErrorName(int error, const char **text) { return *text = "an error", 0; }
int cuGetErrorString(int error, const char **text) { return *text = "an error of the stand-in", 0; }

/* -------------------------------------------------------------------- memory */

typedef struct {
    size_t x, y;
    int kind; /* 1: host */
    void *host;
    Address device;
    void *array;
    size_t pitch;
} End;
typedef struct {
    End from, to;
    size_t bytes, rows;
} Copy;

static char *place(const End *end) {
    return (end->kind == 1 ? (char *)end->host : (char *)end->device) + end->y * end->pitch + end->x;
}
int cuMemcpy2D_v2(const Copy *copy) {
    for (size_t row = 0; row < copy->rows; row++)
        memcpy(place(&copy->to) + row * copy->to.pitch, place(&copy->from) + row * copy->from.pitch, copy->bytes);
    return 0;
}
int cuMemcpy2DAsync_v2(const Copy *copy, void *stream) { return cuMemcpy2D_v2(copy); }
int cuMemAlloc_v2(Address *address, size_t bytes) { return *address = (Address)malloc(bytes), 0; }
int cuMemAllocPitch_v2(Address *address, size_t *pitch, size_t bytes, size_t rows, unsigned element) {
    *pitch = (bytes + 255) & ~(size_t)255;
    return cuMemAlloc_v2(address, *pitch * rows);
}
int cuMemFree_v2(Address address) { return free((void *)address), 0; }

/* ------------------------------------------------------------------- decoder */

static const unsigned char *known;
static size_t known_count, known_bytes;
static int decoded, missed, unwilling;

/* `list`: for each coded picture its checksum (see `sum_of`) in 4 bytes, and its `bytes` of luma and chroma without gaps. */
void fake_pictures(const void *list, size_t count, size_t bytes) {
    known = list, known_count = count, known_bytes = bytes;
}
/* From now on it decodes nothing. */
void fake_refuse(void) { unwilling = 1; }
int fake_decoded(void) { return decoded; }
int fake_missed(void) { return missed; }

enum { SURFACES = 64 };
typedef struct {
    size_t width, height, sample;
    const unsigned char *shown[SURFACES];
} Decoder;

static unsigned sum_of(const unsigned char *data, size_t bytes) { /* Adler-32 */
    unsigned a = 1, b = 0;
    for (size_t i = 0; i < bytes; i++) a = (a + data[i]) % 65521, b = (b + a) % 65521;
    return b << 16 | a;
}

int cuvidGetDecoderCaps(unsigned char *caps) {
    caps[24] = caps[25] = !unwilling;                        /* supported, by one engine */
    *(unsigned short *)(caps + 26) = 3;                      /* NV12, P016 */
    for (int i = 28; i < 40; i += 4) *(unsigned *)(caps + i) = 1 << 16; /* the largest picture */
    return 0;
}
int cuvidCreateDecoder(void **made, const unsigned char *info) {
    Decoder *decoder = calloc(1, sizeof *decoder);
    decoder->sample = *(const int *)(info + 88) ? 2 : 1;
    decoder->width = *(const unsigned long *)(info + 96);
    decoder->height = *(const unsigned long *)(info + 104);
    return *made = decoder, 0;
}
int cuvidDestroyDecoder(void *decoder) { return free(decoder), 0; }
int cuvidDecodePicture(Decoder *decoder, const unsigned char *picture) {
    unsigned sum = sum_of(*(const unsigned char *const *)(picture + 32), *(const unsigned *)(picture + 24));
    const unsigned char **shown = decoder->shown + *(const int *)(picture + 8) % SURFACES;
    *shown = NULL, decoded++;
    for (size_t i = 0; i < known_count; i++)
        if (!memcmp(known + i * (known_bytes + 4), &sum, 4)) *shown = known + i * (known_bytes + 4) + 4;
    missed += !*shown;
    return 0;
}
int cuvidMapVideoFrame64(Decoder *decoder, int number, Address *address, unsigned *pitch, const void *how) {
    size_t row = decoder->width * decoder->sample, gap;
    const unsigned char *picture = decoder->shown[number % SURFACES];
    cuMemAllocPitch_v2(address, &gap, row, decoder->height * 3 / 2, 16);
    *pitch = gap;
    for (size_t i = 0; picture && i < decoder->height * 3 / 2; i++)
        memcpy((char *)*address + i * gap, picture + i * row, row);
    return 0;
}
int cuvidUnmapVideoFrame64(void *decoder, Address address) {
    memset((void *)address, 0xaa, 64); /* nobody looks at it any more */
    return cuMemFree_v2(address);
}
