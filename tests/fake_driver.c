/* A stand-in for NVIDIA's driver as libav loads it (libcuda, libnvcuvid, libnvidia-encode): its memory is the
 * host's.
 *
 * Pictures are not decoded: a list that the test has made tells what the data of a coded picture mean. Nor are they
 * encoded. So all that libav and the project do around the driver is real, and a frame is right only where all of that is.
 * `fake_driver.py` adds the functions that nobody here calls, each of which succeeds.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long Address;

/* ------------------------------------------------------------------ contexts */

enum { GPUS = 2 };
static int primary[GPUS], primary_active[GPUS], others;
static unsigned primary_flags[GPUS];
/* Contexts are pushed and popped by each thread for itself. */
static __thread void *stack[16];
static __thread int depth;

/* PyTorch's runtime was here first: a GPU's primary context exists, with its flags, and is this thread's. */
void fake_runtime(int device, unsigned flags) {
    primary_active[device] = 1;
    primary_flags[device] = flags;
    if (!depth) depth = 1;
    stack[depth - 1] = primary + device;
}
/* The GPU whose primary context is this thread's, or -1. */
int fake_device(void) {
    for (int i = 0; i < GPUS && depth; i++)
        if (stack[depth - 1] == primary + i) return i;
    return -1;
}

/* How many contexts were made besides. */
int fake_contexts(void) { return others; }

int cuDeviceGetCount(int *count) { return *count = GPUS, 0; }
int cuDeviceGet(int *device, int number) { return *device = number, number < GPUS ? 0 : 101; }
int cuDeviceGetName(char *name, int length, int device) { return strncpy(name, "stand-in", length), 0; }
int cuDeviceComputeCapability(int *major, int *minor, int device) { return *major = 9, *minor = 0, 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { return *value = 256, 0; }
int cuCtxPushCurrent_v2(void *context) { return depth == 16 ? 999 : (stack[depth++] = context, 0); }
int cuCtxPopCurrent_v2(void **context) {
    void *top = depth ? stack[--depth] : NULL;
    return context ? *context = top, 0 : 0;
}
int cuCtxCreate_v2(void **context, unsigned flags, int device) {
    others++;
    return cuCtxPushCurrent_v2(*context = malloc(1));
}
int cuCtxDestroy_v2(void *context) { return free(context), 0; }
int cuCtxGetCurrent(void **context) { return *context = depth ? stack[depth - 1] : NULL, 0; }
int cuCtxGetDevice(int *device) { return *device = fake_device(), *device < 0 ? 201 : 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    return *flags = primary_flags[device], *active = primary_active[device], 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = primary + device, 0; }
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
static size_t known_count, known_row, known_height, known_bytes;
static int decoded, missed, unwilling, lasts = 1 << 30;

/* `list`: for each coded picture its checksum (see `sum_of`) in 4 bytes, and its luma and chroma, rows of `row` bytes. */
void fake_pictures(const void *list, size_t count, size_t row, size_t height) {
    known = list, known_count = count, known_row = row, known_height = height, known_bytes = row * height * 3 / 2;
}

/* The same by a file, for processes that nobody can call: the numbers in 8 bytes each, then the list. */
__attribute__((constructor)) static void read_pictures(void) {
    const char *path = getenv("FAKE_DRIVER_PICTURES"), *last = getenv("FAKE_DRIVER_LASTS");
    if (last) lasts = atoi(last);
    FILE *file = path ? fopen(path, "rb") : NULL;
    unsigned long long head[3];
    if (!file || fread(head, 8, 3, file) != 3) return;
    size_t size = head[0] * (head[1] * head[2] * 3 / 2 + 4);
    void *list = malloc(size);
    if (fread(list, 1, size, file) == size) fake_pictures(list, head[0], head[1], head[2]);
    fclose(file);
}

/* From now on it decodes nothing; or nothing more after so many pictures. */
void fake_refuse(void) { unwilling = 1; }
void fake_fail_after(int pictures) { lasts = pictures; }
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
    /* What NVIDIA's stop at. */
    if (*(const unsigned long *)(info + 16) > 32) return 1;
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
    if (decoded++ >= lasts) return 999;
    *shown = NULL;
    for (size_t i = 0; i < known_count; i++)
        if (!memcmp(known + i * (known_bytes + 4), &sum, 4)) *shown = known + i * (known_bytes + 4) + 4;
    missed += !*shown;
    return 0;
}
int cuvidMapVideoFrame64(Decoder *decoder, int number, Address *address, unsigned *pitch, const void *how) {
    size_t gap;
    const unsigned char *picture = decoder->shown[number % SURFACES];
    cuMemAllocPitch_v2(address, &gap, decoder->width * decoder->sample, decoder->height * 3 / 2, 16);
    *pitch = gap;
    /* Whole macroblocks, of which the known picture is the upper left; chroma is below all of them. */
    for (size_t i = 0; picture && i < known_height * 3 / 2; i++) {
        size_t line = i < known_height ? i : i - known_height + decoder->height;
        memcpy((char *)*address + line * gap, picture + i * known_row, known_row);
    }
    return 0;
}
int cuvidUnmapVideoFrame64(void *decoder, Address address) {
    memset((void *)address, 0xaa, 64); /* nobody looks at it any more */
    return cuMemFree_v2(address);
}

/* ------------------------------------------------------------------- encoder */

/* The heads of NVENC's structures. It "encodes" a picture as its luma and chroma without gaps, as it finds them from the
 * one address and pitch that it is told. */
typedef unsigned Word;
typedef struct {
    Word version, kind, width, height, pitch, index;
    char *memory;
    void *handle;
    Word format;
} Resource;
typedef struct {
    Word version, index;
    void *unused, *handle, *mapped;
    Word format;
} Mapping;
typedef struct {
    Word version, width, height, pitch, flags, number;
    unsigned long long time, duration;
    Resource *input;
    struct Coded *output;
} Picture;
typedef struct {
    Word version, flags;
    struct Coded *output;
    Word *slices, number, status, count, bytes;
    unsigned long long time, duration;
    void *data;
    Word kind, structure;
} Lock;
struct Coded {
    unsigned long long time, duration;
    size_t bytes;
    char *data;
    int first;
};
static int pictures_coded;

static int open_session(const void *how, void **session) { return pictures_coded = 0, *session = malloc(1), 0; }
static int close_session(void *session) { return free(session), 0; }
static int count_codecs(void *session, Word *count) { return *count = 2, 0; }
static int name_codecs(void *session, unsigned char (*names)[16], Word room, Word *count) {
    /* H.264 and HEVC */
    static const Word h264[] = {0x6bc82762, 0x4ca44e63, 0x501e85aa, 0xbff621f3};
    static const Word hevc[] = {0x790cdc88, 0x4d7b4522, 0xa9bd2594, 0x03765f97};
    return memcpy(names[0], h264, 16), memcpy(names[1], hevc, 16), *count = 2, 0;
}
static int tell_limit(void *session, unsigned long long a, unsigned long long b, const void *what, int *value) {
    return *value = 8192, 0; /* whatever is asked for */
}
static int accept(void) { return 0; }
static int make_input(void *session, char *made) {
    Resource *input = calloc(1, sizeof *input);
    input->width = *(Word *)(made + 4), input->height = *(Word *)(made + 8), input->format = *(Word *)(made + 16);
    input->pitch = input->width * (input->format == 0x10000 ? 2 : 1);
    input->memory = malloc(input->pitch * input->height * 3 / 2);
    return *(void **)(made + 24) = input, 0;
}
static int drop_input(void *session, Resource *input) { return free(input->memory), free(input), 0; }
static int lock_input(void *session, char *locked) {
    Resource *input = *(void **)(locked + 8);
    return *(void **)(locked + 16) = input->memory, *(Word *)(locked + 24) = input->pitch, 0;
}
static int make_output(void *session, char *made) {
    return *(void **)(made + 16) = calloc(1, sizeof(struct Coded)), 0;
}
static int drop_output(void *session, struct Coded *coded) { return free(coded->data), free(coded), 0; }
static int register_memory(void *session, Resource *given) {
    Resource *kept = malloc(sizeof *kept);
    return *kept = *given, given->handle = kept, 0;
}
static int forget_memory(void *session, void *kept) { return free(kept), 0; }
static int map_memory(void *session, Mapping *mapping) {
    return mapping->mapped = mapping->handle, mapping->format = ((Resource *)mapping->handle)->format, 0;
}
static int headers(void *session, char *told) {
    static const char text[] = {0, 0, 0, 1, 0x67, 'o', 'f', ' ', 'i', 't', 's', ' ', 'o', 'w', 'n'};
    memcpy(*(void **)(told + 16), text, sizeof text);
    return **(Word **)(told + 24) = sizeof text, 0;
}
static int encode(void *session, Picture *picture) {
    if (picture->flags & 8) return 0; /* the end */
    Resource *from = picture->input;
    size_t row = from->width * (from->format == 0x10000 ? 2 : 1), rows = from->height * 3 / 2;
    struct Coded *coded = picture->output;
    coded->data = realloc(coded->data, coded->bytes = row * rows);
    for (size_t i = 0; i < rows; i++) memcpy(coded->data + i * row, from->memory + i * from->pitch, row);
    coded->time = picture->time, coded->duration = picture->duration, coded->first = !pictures_coded++;
    return 0;
}
static int lock(void *session, Lock *locked) {
    struct Coded *coded = locked->output;
    locked->data = coded->data, locked->bytes = coded->bytes, locked->kind = coded->first ? 3 : 0;
    locked->time = coded->time, locked->duration = coded->duration, locked->structure = 1;
    return 0;
}
static const char *last_words(void *session) { return "none"; }

int NvEncodeAPIGetMaxSupportedVersion(Word *version) { return *version = 0xff0, 0; }
int NvEncodeAPICreateInstance(char *list) {
    void **functions = (void **)(list + 8);
    for (int i = 0; i < 41; i++) functions[i] = accept;
    functions[1] = count_codecs, functions[4] = name_codecs, functions[7] = tell_limit;
    functions[12] = make_input, functions[13] = drop_input, functions[19] = lock_input;
    functions[14] = make_output, functions[15] = drop_output, functions[16] = encode, functions[17] = lock;
    functions[22] = headers, functions[25] = map_memory, functions[27] = close_session, functions[29] = open_session;
    functions[30] = register_memory, functions[31] = forget_memory, functions[37] = last_words;
    return 0;
}
