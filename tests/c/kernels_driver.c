/* Holds every kernel of every compiled table to the scalar one, bit for bit (NaN equals NaN), on
 * random inputs: kernels_driver SEED [ISA...]
 *
 * Needs the kernels alone, no checkpoint and no Python, so that it runs under an emulator too. The
 * named instruction sets must be compiled and available. Inputs end where memory is forbidden, and
 * outputs are compared whole, with what no kernel may write. Prints what it ran; exits with 0, or
 * with 1 and a line on stderr at the first difference. */
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cpu/kernels.h"
#include "numeric/double_math.h"
#include "numeric/dtype.h"
#include "numeric/softmax.h"

#define COUNT(array) ((int)(sizeof(array) / sizeof *(array)))

/* ---- what is being run, for reports ---- */

static uint64_t seed;
static const struct gptoss_kernels *scalar, *fast;
static char operation[64], shape[160];
static int64_t num_cases, num_values, num_nans;

static _Noreturn void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    const char *isa = fast != NULL ? fast->isa : "";
    fprintf(stderr, "seed %" PRIu64 ": %s %s (%s): ", seed, isa, operation, shape);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static void begin_operation(const char *name) {
    snprintf(operation, sizeof operation, "%s", name);
    num_cases = num_values = num_nans = 0;
}

static void end_operation(void) {
    printf("%s %s: %" PRId64 " cases, %" PRId64 " values, %.1f %% NaN\n", fast->isa, operation,
           num_cases, num_values, 100.0 * (double)num_nans / (double)num_values);
    if (num_cases == 0 || num_nans * 2 > num_values)
        fail("half of the results say nothing");
}

static void describe(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(shape, sizeof shape, format, arguments);
    va_end(arguments);
}

static void compare(const char *what, const float *actual, const float *expected, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        num_nans += isnan(expected[i]) != 0;
        if (isnan(actual[i]) && isnan(expected[i]))
            continue;
        if (gptoss_bits_from_float(actual[i]) != gptoss_bits_from_float(expected[i]))
            fail("%s[%" PRId64 "] is %a, not %a", what, i, (double)actual[i], (double)expected[i]);
    }
    num_values += count;
}

/* ---- memory that ends at a forbidden page ---- */

enum { WEIGHTS, SCALES, INPUT, EXTRA, SCRATCH, OUT, EXPECTED, OUT_2, EXPECTED_2, NUM_ARENAS };
static const int64_t arena_bytes = 4 << 20;
static uint8_t *arena_ends[NUM_ARENAS];

static void create_arenas(void) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), size = (size_t)arena_bytes;
    for (int i = 0; i < NUM_ARENAS; ++i) {
        uint8_t *start =
            mmap(NULL, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (start == MAP_FAILED || mprotect(start + size, page, PROT_NONE) != 0)
            fail("no memory");
        arena_ends[i] = start + size;
    }
}

static void *place(int arena, int64_t num_bytes) {
    if (num_bytes > arena_bytes)
        fail("%" PRId64 " bytes do not fit an arena", num_bytes);
    return arena_ends[arena] - num_bytes;
}

/* Room for floats, full of a number that no kernel computes. */
static float *place_out(int arena, int64_t count) {
    return memset(place(arena, count * 4), 0xA5, (size_t)count * 4);
}

/* ---- random inputs ---- */

static uint64_t state;

/* SplitMix64. */
static uint64_t random_bits(void) {
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static int64_t random_below(int64_t n) {
    return (int64_t)(random_bits() % (uint64_t)n);
}

/* Instead of a rarity: positive weights times inputs below 0 whose products all round to -0. Then
 * an element that should be skipped, but is added as a zero, shows. */
enum { UNDERFLOW = -1 };

/* One in `rarity` numbers is one that arithmetic treats in a way of its own; 0: none. */
static float random_float(int64_t rarity) {
    static const float odd[] = {NAN,    INFINITY, -INFINITY, 0.0f,  -0.0f,  6e-8f, -6e-8f,
                                6.1e4f, 1e-30f,   1e-42f,    3e38f, -3e38f, 1e-5f, -1e-42f};
    if (rarity == UNDERFLOW)
        return -1e-44f;
    if (rarity > 0 && random_below(rarity) == 0)
        return odd[random_below(COUNT(odd))];
    uint32_t bits = (uint32_t)random_bits();
    uint32_t exponent = 127u - 10u + (uint32_t)random_below(14);
    return gptoss_float_from_bits((bits & 0x807FFFFFu) | exponent << 23);
}

static float *random_floats(int arena, int64_t count, int64_t rarity) {
    float *x = place(arena, count * 4);
    for (int64_t i = 0; i < count; ++i)
        x[i] = random_float(rarity);
    return x;
}

/* Elements of 2 or 4 bytes of a layout without blocks, any alignment. */
static void fill_elements(uint8_t *to, int64_t num_bytes, enum gptoss_dtype dtype, int64_t rarity) {
    int64_t element_bytes = dtype == GPTOSS_DTYPE_F32 ? 4 : 2;
    for (int64_t at = 0; at + element_bytes <= num_bytes; at += element_bytes) {
        float value = rarity == UNDERFLOW ? 1e-4f : random_float(rarity);
        uint16_t half = dtype == GPTOSS_DTYPE_F16 ? gptoss_f16_from_float(value)
                                                  : (uint16_t)(gptoss_bits_from_float(value) >> 16);
        memcpy(to + at, element_bytes == 4 ? (const void *)&value : &half, (size_t)element_bytes);
    }
}

static uint8_t random_scale(int64_t rarity) {
    static const uint8_t odd[] = {0, 1, 2, 253, 254, 255};
    if (rarity > 0 && random_below(rarity) == 0)
        return odd[random_below(COUNT(odd))];
    return rarity == UNDERFLOW ? 100 : (uint8_t)(117 + random_below(20));
}

/* ---- matrices ---- */

static const char *const layout_names[] = {
    "f32",        "f16",        "bf16",       "f32_transposed", "f16_transposed", "bf16_transposed",
    "mxfp4",      "mxfp4_gguf", "q8_0",       "q4_0",           "q4_1",           "q5_0",
    "q5_1",       "q2_k",       "q3_k",       "q4_k",           "q5_k",           "q6_k",
    "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3", "mxfp8_e5m2"};
_Static_assert(COUNT(layout_names) == GPTOSS_NUM_LAYOUTS, "a layout without a name");

static int64_t block_of(enum gptoss_layout layout) {
    return gptoss_dtype_block(gptoss_layout_dtype(layout));
}

static bool has_planes(enum gptoss_layout layout) {
    return gptoss_dtype_has_planes(gptoss_layout_dtype(layout));
}

/* The elements of one stored row. */
static int64_t stored_bytes(enum gptoss_layout layout, int64_t count) {
    return (int64_t)gptoss_dtype_row_bytes(gptoss_layout_dtype(layout), (uint64_t)count);
}

/* Where a block's f16 scales begin, and their bytes. */
static void place_of_halves(enum gptoss_layout layout, int64_t *at, int64_t *num_bytes) {
    *at = 0;
    *num_bytes = 2;
    switch (layout) {
    case GPTOSS_LAYOUT_Q2_K: *at = 80; /* fall through */
    case GPTOSS_LAYOUT_Q4_1:
    case GPTOSS_LAYOUT_Q5_1:
    case GPTOSS_LAYOUT_Q4_K:
    case GPTOSS_LAYOUT_Q5_K: *num_bytes = 4; break;
    case GPTOSS_LAYOUT_Q3_K: *at = 108; break;
    case GPTOSS_LAYOUT_Q6_K: *at = 208; break;
    default:;
    }
}

static void fill_stored_row(uint8_t *row, enum gptoss_layout layout, int64_t count,
                            int64_t rarity) {
    int64_t num_bytes = stored_bytes(layout, count), block = block_of(layout), at, half_bytes;
    if (block == 1) {
        fill_elements(row, num_bytes, gptoss_layout_dtype(layout), rarity);
        return;
    }
    for (int64_t i = 0; i < num_bytes; ++i)
        row[i] = (uint8_t)(random_bits() & (rarity == UNDERFLOW ? 0x77 : 0xFF));
    /* NaN and infinite codes of 8 bits are rare. */
    for (int64_t i = 0; i < num_bytes && layout >= GPTOSS_LAYOUT_MXFP8_E4M3; ++i)
        row[i] &= random_below(8 * count) == 0 ? 0xFF : 0xBF;
    place_of_halves(layout, &at, &half_bytes);
    for (int64_t i = 0; i < count && !has_planes(layout); i += block) {
        if (layout == GPTOSS_LAYOUT_MXFP4_GGUF)
            row[i / block * 17] = random_scale(rarity);
        else
            fill_elements(row + stored_bytes(layout, i) + at, half_bytes, GPTOSS_DTYPE_F16, rarity);
    }
}

static struct gptoss_matrix random_matrix(enum gptoss_layout layout, int64_t num_rows,
                                          int64_t num_columns, int64_t rarity) {
    int64_t num_stored = gptoss_layout_is_transposed(layout) ? num_columns : num_rows;
    int64_t width = gptoss_layout_is_transposed(layout) ? num_rows : num_columns;
    int64_t bytes = stored_bytes(layout, width), row_bytes = bytes + random_below(4);
    int64_t num_blocks = num_columns / 32, scale_row_bytes = num_blocks + random_below(3);
    uint8_t *data = place(WEIGHTS, (num_stored - 1) * row_bytes + bytes), *scales = NULL;
    for (int64_t r = 0; r < num_stored; ++r)
        fill_stored_row(data + r * row_bytes, layout, width, rarity);
    if (has_planes(layout)) {
        scales = place(SCALES, (num_rows - 1) * scale_row_bytes + num_blocks);
        for (int64_t r = 0; r < num_rows; ++r)
            for (int64_t b = 0; b < num_blocks; ++b)
                scales[r * scale_row_bytes + b] = random_scale(rarity);
    }
    return (struct gptoss_matrix){layout,    num_rows, num_columns,    data,
                                  row_bytes, scales,   scale_row_bytes};
}

/* num_vectors inputs in lane order. */
static const float *random_lanes(enum gptoss_layout layout, int64_t num_columns,
                                 int32_t num_vectors, int64_t rarity) {
    int per_lane = gptoss_layout_per_lane(layout);
    int64_t padded = gptoss_padded_columns(num_columns, per_lane), group = GPTOSS_LANES * per_lane;
    float *x = random_floats(INPUT, num_vectors * padded, rarity);
    for (int64_t at = 0; at < num_vectors * padded; ++at) {
        int64_t column = at % padded, within = column % group;
        column += gptoss_lane_element(layout, (int)(within % GPTOSS_LANES),
                                      (int)(within / GPTOSS_LANES)) -
                  within;
        if (column >= num_columns)
            x[at] = 0.0f;
    }
    return x;
}

/* ---- the matrix kernels ---- */

static const int64_t plain_columns[] = {1,  2,  3,  4,  5,  7,   8,   9,   12,  13,
                                        15, 16, 17, 20, 24, 29,  31,  32,  33,  47,
                                        48, 49, 63, 64, 65, 100, 127, 128, 129, 200};
static const int64_t block_columns[] = {32,  64,  96,  128, 160, 192, 224, 256,
                                        288, 384, 416, 512, 544, 640, 736, 768};
static const int64_t long_block_columns[] = {256, 512, 768};
static const int64_t row_counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 31, 32, 33, 41};

static int num_column_counts(enum gptoss_layout layout) {
    return block_of(layout) == 1    ? COUNT(plain_columns)
           : block_of(layout) == 32 ? COUNT(block_columns)
                                    : COUNT(long_block_columns);
}
static int64_t column_count(enum gptoss_layout layout, int index) {
    return block_of(layout) == 1    ? plain_columns[index]
           : block_of(layout) == 32 ? block_columns[index]
                                    : long_block_columns[index];
}

/* Of every three cases one has special values, about one to two rows, and one underflows. */
static int64_t rarity_of(int64_t index, int64_t num_columns) {
    return index % 3 == 0 ? 0 : index % 3 == 1 ? 2 * num_columns + 4 : UNDERFLOW;
}

static void test_matvec(enum gptoss_layout layout) {
    for (int c = 0; c < num_column_counts(layout); ++c)
        for (int i = 0; i < COUNT(row_counts); ++i)
            for (int32_t num_vectors = 1; num_vectors <= GPTOSS_MAX_VECTORS; ++num_vectors) {
                int64_t num_columns = column_count(layout, c), first_row = random_below(4);
                int64_t num_rows = row_counts[i], rarity = rarity_of(random_below(3), num_columns);
                describe("%d rows from %d, %d columns, %d vectors", (int)num_rows, (int)first_row,
                         (int)num_columns, (int)num_vectors);
                struct gptoss_matrix matrix =
                    random_matrix(layout, first_row + num_rows, num_columns, rarity);
                const float *x = random_lanes(layout, num_columns, num_vectors, rarity);
                float *out = place_out(OUT, num_vectors * num_rows);
                float *expected = place_out(EXPECTED, num_vectors * num_rows);
                scalar->matvec[layout](&matrix, first_row, num_rows, x, num_vectors, expected);
                fast->matvec[layout](&matrix, first_row, num_rows, x, num_vectors, out);
                compare("out", out, expected, num_vectors * num_rows);
                ++num_cases;
            }
}

static struct gptoss_panel place_panel(const struct gptoss_matrix *matrix, int values, int scales) {
    int per_lane = gptoss_layout_per_lane(matrix->layout);
    int64_t num_columns = matrix->num_columns;
    return (struct gptoss_panel){
        num_columns, per_lane, place_out(values, gptoss_panel_num_values(num_columns, per_lane)),
        gptoss_layout_is_scaled(matrix->layout)
            ? place_out(scales, gptoss_panel_num_scales(num_columns, per_lane))
            : NULL};
}

static void test_expand_panel(enum gptoss_layout layout) {
    for (int c = 0; c < num_column_counts(layout); ++c)
        for (int64_t num_rows = 1; num_rows <= GPTOSS_PANEL_ROWS; ++num_rows) {
            int64_t num_columns = column_count(layout, c), first_row = random_below(3);
            describe("%d rows from %d, %d columns", (int)num_rows, (int)first_row,
                     (int)num_columns);
            struct gptoss_matrix matrix = random_matrix(layout, first_row + num_rows, num_columns,
                                                        rarity_of(num_rows, num_columns));
            struct gptoss_panel out = place_panel(&matrix, OUT, OUT_2),
                                expected = place_panel(&matrix, EXPECTED, EXPECTED_2);
            scalar->expand_panel[layout](&matrix, first_row, num_rows, &expected);
            fast->expand_panel[layout](&matrix, first_row, num_rows, &out);
            compare("values", out.values, expected.values,
                    gptoss_panel_num_values(num_columns, out.per_lane));
            if (out.scales != NULL)
                compare("scales", out.scales, expected.scales,
                        gptoss_panel_num_scales(num_columns, out.per_lane));
            ++num_cases;
        }
}

static void test_multiply_panel(enum gptoss_layout layout) {
    bool scaled = gptoss_layout_is_scaled(layout);
    gptoss_multiply_panel_fn *by_scalar =
        scaled ? scalar->multiply_panel_scaled : scalar->multiply_panel_unscaled;
    gptoss_multiply_panel_fn *by_fast =
        scaled ? fast->multiply_panel_scaled : fast->multiply_panel_unscaled;
    for (int c = 0; c < num_column_counts(layout); ++c)
        for (int64_t num_tiles = 1; num_tiles <= GPTOSS_MAX_TILES; ++num_tiles) {
            int64_t num_columns = column_count(layout, c);
            if (num_tiles > 2 && num_columns > 160 && num_tiles != GPTOSS_MAX_TILES)
                continue; /* long rows times many tiles take an emulator long */
            int64_t rarity = rarity_of(num_tiles, num_columns), num_rows = 1 + random_below(32);
            describe("%d rows, %d columns, %d tiles", (int)num_rows, (int)num_columns,
                     (int)num_tiles);
            struct gptoss_matrix matrix = random_matrix(layout, num_rows, num_columns, rarity);
            struct gptoss_panel panel = place_panel(&matrix, EXTRA, OUT_2);
            scalar->expand_panel[layout](&matrix, 0, num_rows, &panel);
            int64_t num_tokens = num_tiles * GPTOSS_TILE_TOKENS;
            int64_t padded = gptoss_padded_columns(num_columns, panel.per_lane);
            const float *x = random_floats(INPUT, num_tokens * padded, rarity);
            float *scratch = place(SCRATCH, GPTOSS_MULTIPLY_SCRATCH * (int64_t)sizeof(float));
            float *out = place_out(OUT, num_tokens * GPTOSS_PANEL_ROWS);
            float *expected = place_out(EXPECTED, num_tokens * GPTOSS_PANEL_ROWS);
            by_scalar(&panel, x, num_tiles, expected, scratch);
            by_fast(&panel, x, num_tiles, out, scratch);
            compare("out", out, expected, num_tokens * GPTOSS_PANEL_ROWS);
            ++num_cases;
        }
}

static void test_matrix_kernels(void) {
    char name[64];
    for (enum gptoss_layout layout = 0; layout < GPTOSS_NUM_LAYOUTS; ++layout) {
        snprintf(name, sizeof name, "matvec_%s", layout_names[layout]);
        begin_operation(name);
        test_matvec(layout);
        end_operation();
        snprintf(name, sizeof name, "expand_panel_%s", layout_names[layout]);
        begin_operation(name);
        test_expand_panel(layout);
        end_operation();
    }
    begin_operation("multiply_panel_unscaled");
    test_multiply_panel(GPTOSS_LAYOUT_BF16);
    end_operation();
    begin_operation("multiply_panel_scaled");
    test_multiply_panel(GPTOSS_LAYOUT_MXFP4);
    end_operation();
}

/* ---- attention ---- */

enum { MAX_QUERIES = 10, TILE = GPTOSS_ATTENTION_TILE };

/* The keys that queries see: mostly a few neighbours alike, now and then none. */
static void random_ranges(int32_t num_queries, int32_t *first, int32_t *end) {
    for (int32_t i = 0; i < num_queries; ++i) {
        bool like_last = i > 0 && random_below(3) > 0;
        first[i] = like_last ? first[i - 1] : (int32_t)random_below(TILE);
        end[i] = like_last ? end[i - 1] : first[i] + (int32_t)random_below(TILE + 1 - first[i]);
        if (!like_last && random_below(3) == 0) {
            first[i] = 0;
            end[i] = TILE;
        }
    }
}

static void run_attention(const struct gptoss_attention_tile *inputs, bool is_f16,
                          const struct gptoss_kernels *kernels, int arena, float **out) {
    struct gptoss_attention_tile tile = *inputs;
    *out = place_out(arena, inputs->num_queries * (int64_t)(inputs->head_dim + 2));
    tile.maximum = *out;
    tile.sum = tile.maximum + inputs->num_queries;
    tile.value = tile.sum + inputs->num_queries;
    float *scratch = place(SCRATCH, GPTOSS_ATTENTION_SCRATCH(tile.head_dim) * 4);
    (is_f16 ? kernels->attention_tile_f16 : kernels->attention_tile_f32)(&tile, scratch);
}

static void test_attention(bool is_f16) {
    static const int32_t head_dims[] = {1,  2,  3,  4,  5,  7,  8,  12, 15, 16, 17,  20, 31,
                                        32, 33, 36, 48, 60, 63, 64, 65, 80, 96, 128, 129};
    for (int h = 0; h < COUNT(head_dims); ++h)
        for (int32_t num_queries = 1; num_queries <= MAX_QUERIES; ++num_queries) {
            int32_t head_dim = head_dims[h], first[MAX_QUERIES], end[MAX_QUERIES], num_rows = 0;
            int64_t rarity = num_queries % 2 == 0 ? 0 : 40 * head_dim;
            random_ranges(num_queries, first, end);
            for (int32_t i = 0; i < num_queries; ++i)
                num_rows = end[i] > first[i] && end[i] > num_rows ? end[i] : num_rows;
            int64_t bytes = head_dim * (is_f16 ? 2 : 4), row_bytes = bytes + 4 * random_below(3);
            int64_t total = num_rows == 0 ? 0 : (num_rows - 1) * row_bytes + bytes;
            uint8_t *keys = place(WEIGHTS, total), *values = place(EXTRA, total);
            enum gptoss_dtype dtype = is_f16 ? GPTOSS_DTYPE_F16 : GPTOSS_DTYPE_F32;
            fill_elements(keys, total, dtype, rarity);
            fill_elements(values, total, dtype, rarity);
            int64_t query_stride = head_dim + random_below(3);
            struct gptoss_attention_tile tile = {
                .keys = keys,
                .values = values,
                .row_bytes = row_bytes,
                .head_dim = head_dim,
                .num_queries = num_queries,
                .scale = 1.0f / sqrtf((float)head_dim),
                .queries =
                    random_floats(INPUT, (num_queries - 1) * query_stride + head_dim, rarity),
                .query_stride = query_stride,
                .first_key = first,
                .end_key = end,
            };
            describe("%d queries, head_dim %d", (int)num_queries, (int)head_dim);
            float *out, *expected;
            run_attention(&tile, is_f16, scalar, EXPECTED, &expected);
            run_attention(&tile, is_f16, fast, OUT, &out);
            compare("maximum, sum, value", out, expected, num_queries * (int64_t)(head_dim + 2));
            ++num_cases;
        }
}

/* ---- the elementwise kernels ---- */

static void *copy(int arena, const float *x, int64_t count) {
    return memcpy(place(arena, count * 4), x, (size_t)count * 4);
}

static void test_attention_merge(int64_t n, int64_t rarity) {
    const float *value = random_floats(INPUT, n + 2, rarity);
    const float *tile_value = random_floats(EXTRA, n, rarity);
    float maximum = random_float(rarity), sum = fabsf(random_float(rarity));
    float *out = copy(OUT, value, n + 2), *expected = copy(EXPECTED, value, n + 2);
    scalar->attention_merge(expected, expected + 1, expected + 2, &maximum, &sum, tile_value, 1, n);
    fast->attention_merge(out, out + 1, out + 2, &maximum, &sum, tile_value, 1, n);
    compare("state", out, expected, n + 2);
}

static void test_rms_norm(int64_t n, int64_t rarity) {
    const float *x = random_floats(INPUT, n, 4 * rarity), *gain = random_floats(EXTRA, n, rarity);
    float *out = place_out(OUT, n), *expected = place_out(EXPECTED, n);
    scalar->rms_norm(x, gain, n, 1e-5f, expected);
    fast->rms_norm(x, gain, n, 1e-5f, out);
    compare("out", out, expected, n);
}

static void test_layer_norm(int64_t n, int64_t rarity) {
    const float *x = random_floats(INPUT, n, 4 * rarity), *gain = random_floats(EXTRA, n, rarity);
    const float *bias = random_floats(SCALES, n, rarity);
    float *out = place_out(OUT, n), *expected = place_out(EXPECTED, n);
    scalar->layer_norm(x, gain, bias, n, 1e-5f, expected);
    fast->layer_norm(x, gain, bias, n, 1e-5f, out);
    compare("out", out, expected, n);
}

static void test_rope(int64_t n, int64_t rarity) {
    int64_t num_heads = 1 + random_below(3), count = 2 * n * num_heads;
    const float *x = random_floats(INPUT, count, rarity), *cosine = random_floats(EXTRA, n, rarity);
    const float *sine = random_floats(SCALES, n, rarity);
    float *out = copy(OUT, x, count), *expected = copy(EXPECTED, x, count);
    scalar->rope(expected, cosine, sine, n, num_heads);
    fast->rope(out, cosine, sine, n, num_heads);
    compare("x", out, expected, count);
    scalar->rope_neighbours(expected, cosine, sine, n, num_heads);
    fast->rope_neighbours(out, cosine, sine, n, num_heads);
    compare("x", out, expected, count);
}

static void test_swiglu(int64_t n, int64_t rarity) {
    const float *gate_up = random_floats(INPUT, 2 * n, rarity);
    float *out = place_out(OUT, n), *expected = place_out(EXPECTED, n);
    scalar->swiglu(gate_up, n, 7.0f, 1.702f, expected);
    fast->swiglu(gate_up, n, 7.0f, 1.702f, out);
    compare("out", out, expected, n);
}

static void test_silu_multiply(int64_t n, int64_t rarity) {
    const float *gate = random_floats(INPUT, n, rarity), *up = random_floats(EXTRA, n, rarity);
    float *out = copy(OUT, gate, n), *expected = copy(EXPECTED, gate, n);
    scalar->silu_multiply(expected, up, n);
    fast->silu_multiply(out, up, n);
    compare("gate", out, expected, n);
}

static void test_gelu(int64_t n, int64_t rarity) {
    const float *x = random_floats(INPUT, n, rarity);
    float *out = place_out(OUT, n), *expected = place_out(EXPECTED, n);
    scalar->gelu(x, n, expected);
    fast->gelu(x, n, out);
    compare("out", out, expected, n);
}

static void test_add(int64_t n, int64_t rarity) {
    const float *x = random_floats(INPUT, n, rarity), *y = random_floats(EXTRA, n, rarity);
    float *out = copy(OUT, x, n), *expected = copy(EXPECTED, x, n);
    scalar->add(expected, y, n);
    fast->add(out, y, n);
    compare("x", out, expected, n);
}

static void test_multiply_add(int64_t n, int64_t rarity) {
    const float *x = random_floats(INPUT, n, rarity), *y = random_floats(EXTRA, n, rarity);
    float *out = copy(OUT, x, n), *expected = copy(EXPECTED, x, n), weight = random_float(rarity);
    scalar->multiply_add(expected, weight, y, n);
    fast->multiply_add(out, weight, y, n);
    compare("sum", out, expected, n);
}

static void test_divide(int64_t n, int64_t rarity) {
    const float *x = random_floats(INPUT, n, rarity);
    float *out = place_out(OUT, n), *expected = place_out(EXPECTED, n);
    float divisor = random_float(rarity);
    scalar->divide(x, divisor, n, expected);
    fast->divide(x, divisor, n, out);
    compare("out", out, expected, n);
}

static void test_convert_f32_f16(int64_t n, int64_t rarity) {
    float *x = random_floats(INPUT, n, rarity);
    for (int64_t i = 0; i < n && rarity > 0; i += 2)
        x[i] = gptoss_float_from_bits((uint32_t)random_bits());
    uint16_t *halves = place(OUT, n * 2), *expected_halves = place(EXPECTED, n * 2);
    scalar->convert_f32_f16(x, n, expected_halves);
    fast->convert_f32_f16(x, n, halves);
    float *out = place(OUT_2, n * 4), *expected = place(EXPECTED_2, n * 4);
    for (int64_t i = 0; i < n; ++i) {
        out[i] = gptoss_float_from_f16(halves[i]);
        expected[i] = gptoss_float_from_f16(expected_halves[i]);
    }
    compare("out", out, expected, n);
}

/* ---- softmax over a vocabulary: not against the scalar kernels, but as it is defined ---- */

static void test_block_maxima(int64_t n, int64_t rarity) {
    n = n < 70 ? n : (n - 69) * 37;
    int64_t num_blocks = (n + GPTOSS_SOFTMAX_BLOCK - 1) / GPTOSS_SOFTMAX_BLOCK;
    const float *x = random_floats(INPUT, n, rarity * 100);
    float *out = place_out(OUT, num_blocks), *expected = place_out(EXPECTED, num_blocks);
    for (int64_t i = 0; i < n; ++i) {
        float *maximum = &expected[i / GPTOSS_SOFTMAX_BLOCK];
        if (i % GPTOSS_SOFTMAX_BLOCK == 0 || isnan(x[i]) || x[i] > *maximum)
            *maximum = x[i];
    }
    fast->block_maxima(x, n, out);
    for (int64_t i = 0; i < num_blocks; ++i)
        out[i] = out[i] == expected[i] ? expected[i] : out[i]; /* -0 or +0 */
    compare("maxima", out, expected, num_blocks);
}

static void compare_words(const char *what, const uint64_t *actual, const uint64_t *expected,
                          int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        if (actual[i] != expected[i])
            fail("%s[%" PRId64 "] is %" PRIx64 ", not %" PRIx64, what, i, actual[i], expected[i]);
    num_values += count;
}

/* Logits of any spread without NaN. */
static float *random_logits(int64_t n, int64_t rarity, float *maximum_out) {
    static const float spreads[] = {1e-40f, 1e-3f, 0.1f, 1, 1, 1, 3, 20, 1e30f};
    float *x = random_floats(INPUT, n, rarity), spread = spreads[random_below(COUNT(spreads))];
    *maximum_out = random_below(2) == 0 ? -INFINITY : 100 * spread;
    for (int64_t i = 0; i < n; ++i) {
        x[i] = isnan(x[i]) ? 0 : x[i] * spread;
        *maximum_out = x[i] > *maximum_out ? x[i] : *maximum_out;
    }
    return x;
}

static void test_powers(int64_t n, int64_t rarity) {
    static const double sums[] = {0, 1e-300, 1e-18, 1e-5, 0.5, 0.9999999, 1, 3, 255, 1e6};
    static const float temperatures[] = {1, 1, 0.7f, 1.3f, 1e-30f, 1e-3f, 50, 3e38f};
    float maximum, temperature = temperatures[random_below(COUNT(temperatures))];
    n += random_below(2) * (GPTOSS_SOFTMAX_BLOCK - 140);
    const float *x = random_logits(n, rarity, &maximum);
    if (maximum == -INFINITY)
        return;
    double first = sums[random_below(COUNT(sums))], sum = first, out;
    uint64_t least = random_below(2) == 0 ? 0 : random_bits() >> random_below(64) >> 24;
    uint64_t *weights = place(OUT, n * 8), *expected = place(EXPECTED, n * 8);
    uint64_t total = 0, total_of_1 = 0, total_out;
    for (int64_t i = 0; i < n; ++i) {
        double distance = gptoss_softmax_distance(x[i], maximum), power = gptoss_exp(distance);
        uint64_t weight = (uint64_t)rint(power * 0x1p40);
        sum += power;
        total_of_1 += weight >= least ? weight : 0;
        weight = (uint64_t)rint(gptoss_exp(distance / temperature) * 0x1p40);
        total += expected[i] = weight >= least ? weight : 0;
    }
    const uint64_t sum_bits = gptoss_bits_from_double(sum);
    out = fast->add_powers(first, x, n, maximum);
    compare_words("sum", &(uint64_t){gptoss_bits_from_double(out)}, &sum_bits, 1);
    total_out = fast->weigh(x, n, maximum, temperature, least, weights);
    compare_words("total weight", &total_out, &total, 1);
    compare_words("weights", weights, expected, n);
    out = fast->add_powers_and_weigh(first, x, n, maximum, least, &total_out);
    compare_words("sum beside weights", &(uint64_t){gptoss_bits_from_double(out)}, &sum_bits, 1);
    compare_words("weight beside the sum", &total_out, &total_of_1, 1);
}

static void test_elementwise(void) {
    static const struct {
        const char *name;
        void (*test)(int64_t n, int64_t rarity);
    } tests[] = {
        {"attention_merge", test_attention_merge},
        {"rms_norm", test_rms_norm},
        {"layer_norm", test_layer_norm},
        {"rope", test_rope},
        {"swiglu", test_swiglu},
        {"silu_multiply", test_silu_multiply},
        {"gelu", test_gelu},
        {"add", test_add},
        {"multiply_add", test_multiply_add},
        {"divide", test_divide},
        {"convert_f32_f16", test_convert_f32_f16},
        {"block_maxima", test_block_maxima},
        {"powers", test_powers},
    };
    for (int i = 0; i < COUNT(tests); ++i) {
        begin_operation(tests[i].name);
        for (int64_t n = 1; n <= 140; ++n)
            for (int64_t rarity = 0; rarity <= 40; rarity += 20) {
                describe("n %d", (int)n);
                tests[i].test(n, rarity);
                ++num_cases;
            }
        end_operation();
    }
}

static void test_table(const struct gptoss_kernels *kernels) {
    fast = kernels;
    test_matrix_kernels();
    for (int is_f16 = 0; is_f16 < 2; ++is_f16) {
        begin_operation(is_f16 ? "attention_tile_f16" : "attention_tile_f32");
        test_attention(is_f16);
        end_operation();
    }
    test_elementwise();
}

int main(int num_arguments, char **arguments) {
    if (num_arguments < 2) {
        fprintf(stderr, "usage: %s SEED [ISA...]\n", arguments[0]);
        return 1;
    }
    seed = state = strtoull(arguments[1], NULL, 10);
    printf("seed %" PRIu64 "\n", seed);
    create_arenas();
    scalar = gptoss_kernels_select("scalar");
    for (int i = 2; i < num_arguments; ++i)
        if (gptoss_kernels_select(arguments[i]) == NULL) {
            fprintf(stderr, "%s is not compiled or not available here\n", arguments[i]);
            return 1;
        }
    int num_tables = 0;
    for (size_t i = 0; gptoss_kernels_at(i) != NULL; ++i) {
        const struct gptoss_kernels *kernels = gptoss_kernels_at(i);
        if (kernels == scalar)
            continue;
        if (!gptoss_isa_available(i)) {
            printf("%s: not on this machine\n", kernels->isa);
            continue;
        }
        test_table(kernels);
        ++num_tables;
    }
    if (num_tables == 0)
        fail("no table but the scalar one");
    puts("kernels: ok");
    return 0;
}
