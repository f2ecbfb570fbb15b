/* Products at precision bf16 with tdpbf16ps, the product of two tiles: 16 rows of 32 weights, and
 * 32 elements of up to 16 tokens' inputs in pairs. For each output, over the groups of 32,
 * ascending:
 *
 *     even = +0; odd = +0
 *     even = fma(w[2 i], x[2 i], even); odd = fma(w[2 i + 1], x[2 i + 1], odd)      i = 0 .. 15
 *     sum = sum + (even + odd)
 *
 * Only the output's own row and token take part, so one token and many give the same bits. Blocks
 * of 2 x 2 tiles hold the sums of 32 rows and 32 tokens; between chunks of columns, whose weights
 * stay in the first-level cache while all tokens pass, they wait in memory. */
#include <string.h>

#include "cpu/bf16_rows.h"
#include "cpu/bf16_units.h"

enum { TILE = 16, TILE_BYTES = 1024, TILE_ROW_BYTES = 64, TASK_ROWS = 2 * TILE };
enum { CHUNK_GROUPS = 16, BLOCK_TOKENS = 2 * TILE, MAX_BLOCKS = 16 };
enum { MAX_TOKENS = MAX_BLOCKS * BLOCK_TOKENS };

/* The tiles' numbers are parts of the instructions: 0 to 3 sums, 4 and 5 weights, 6 and 7 inputs.
 */

/* A thread's scratch. */
struct workplace {
    _Alignas(64) uint8_t weights[CHUNK_GROUPS][2][TILE_BYTES]; /* an expanded chunk */
    _Alignas(64) float sums[MAX_BLOCKS][4][TILE][TILE]; /* [row][token] by tile, as numbered */
    float results[BLOCK_TOKENS][TASK_ROWS];
};

/* ---- inputs ---- */

static int64_t piece_bytes(const struct gptoss_product *product) {
    int64_t tokens = product->num_tokens < TILE ? product->num_tokens : TILE;
    return gptoss_bf16_num_groups(product->matrix.num_columns) * TILE_ROW_BYTES * tokens;
}

/* out[g][l][token] = pair l of group g; only the tokens that there are. */
static void pack(const struct gptoss_product *product, int64_t piece, void *out_bytes) {
    float *out = out_bytes;
    enum gptoss_layout layout = product->matrix.layout;
    int64_t num_columns = product->matrix.num_columns, left = product->num_tokens - piece * TILE;
    int64_t num_groups = gptoss_bf16_num_groups(num_columns), n = left < TILE ? left : TILE;
    const float *lines[TILE];
    for (int64_t t = 0; t < n; ++t)
        lines[t] = gptoss_product_input(product, piece * TILE + t);
    for (int64_t g = 0; g < num_groups; ++g, out += TILE * n) {
        int64_t width = gptoss_bf16_group_width(num_columns, g);
        if (n == 1) {
            _mm512_storeu_si512(out, gptoss_bf16_round(layout, lines[0], g, width));
            continue;
        }
        __m512 pairs[TILE];
        for (int64_t t = 0; t < TILE; ++t)
            pairs[t] =
                t < n ? (__m512)gptoss_bf16_round(layout, lines[t], g, width) : _mm512_setzero_ps();
        gptoss_transpose_16(pairs);
        for (int64_t l = 0; l < TILE; ++l)
            _mm512_mask_storeu_ps(out + l * n, gptoss_first_lanes(n), pairs[l]);
    }
}

static uint64_t scratch_bytes(const struct gptoss_product *product) {
    (void)product;
    return sizeof(struct workplace);
}

/* ---- weights ---- */

/* A chunk of up to 32 rows as tiles. */
struct chunk {
    const uint8_t *tiles; /* of the first 16 rows and the first group */
    int64_t half_bytes;   /* to the tile of the other rows */
    int64_t group_bytes, row_bytes;
    const uint8_t *next; /* what to fetch ahead for the rows, a line a group; NULL: nothing */
    int64_t next_row_bytes;
};

/* Where the weights come from that are needed after a chunk: the next columns of the same rows, or
 * the first of the next rows. */
static const uint8_t *after_chunk(const struct gptoss_matrix *matrix, int64_t first_row,
                                  int64_t end_group) {
    bool is_last = end_group >= gptoss_bf16_num_groups(matrix->num_columns);
    return gptoss_bf16_row(matrix, first_row + (is_last ? TASK_ROWS : 0)) +
           (is_last ? 0 : end_group * gptoss_bf16_group_bytes(matrix->layout));
}

GPTOSS_INLINE void expand_rows(const struct gptoss_matrix *matrix, enum gptoss_layout layout,
                               int64_t first_row, int64_t num_rows, int64_t first_group,
                               int64_t num_groups, struct workplace *work) {
    const uint8_t *next = after_chunk(matrix, first_row, first_group + num_groups);
    for (int64_t r = 0; r < num_rows; ++r) {
        const uint8_t *row = gptoss_bf16_row(matrix, first_row + r),
                      *scales = gptoss_bf16_scales(matrix, first_row + r);
        for (int64_t at = 0; at < num_groups * gptoss_bf16_group_bytes(layout); at += 64)
            _mm_prefetch((const char *)next + r * matrix->row_bytes + at, _MM_HINT_T0);
        uint8_t *out = work->weights[0][r / TILE] + r % TILE * TILE_ROW_BYTES;
        for (int64_t i = 0; i < num_groups; ++i, out += sizeof work->weights[0]) {
            int64_t g = first_group + i;
            int64_t width = gptoss_bf16_group_width(matrix->num_columns, g);
            _mm512_storeu_si512(out, gptoss_bf16_load(layout, row, scales, g, width));
        }
    }
}

static void expand_chunk(const struct gptoss_matrix *matrix, int64_t first_row, int64_t num_rows,
                         int64_t first_group, int64_t num_groups, struct workplace *work) {
    if (matrix->layout == GPTOSS_LAYOUT_MXFP4)
        expand_rows(matrix, GPTOSS_LAYOUT_MXFP4, first_row, num_rows, first_group, num_groups,
                    work);
    else if (matrix->layout == GPTOSS_LAYOUT_MXFP4_GGUF)
        expand_rows(matrix, GPTOSS_LAYOUT_MXFP4_GGUF, first_row, num_rows, first_group, num_groups,
                    work);
    else
        expand_rows(matrix, GPTOSS_LAYOUT_BF16, first_row, num_rows, first_group, num_groups, work);
}

/* bf16 rows are tiles as they lie in memory, but for a group that they do not fill. */
static struct chunk load_chunk(const struct gptoss_matrix *matrix, int64_t first_row,
                               int64_t num_rows, int64_t first_group, int64_t num_groups,
                               struct workplace *work) {
    int64_t end = first_group + num_groups;
    if (matrix->layout == GPTOSS_LAYOUT_BF16 && end * GPTOSS_BF16_GROUP <= matrix->num_columns)
        return (struct chunk){
            .tiles = gptoss_bf16_row(matrix, first_row) + first_group * TILE_ROW_BYTES,
            .half_bytes = TILE * matrix->row_bytes,
            .group_bytes = TILE_ROW_BYTES,
            .row_bytes = matrix->row_bytes,
            .next = after_chunk(matrix, first_row, end),
            .next_row_bytes = matrix->row_bytes,
        };
    expand_chunk(matrix, first_row, num_rows, first_group, num_groups, work);
    return (struct chunk){
        .tiles = work->weights[0][0],
        .half_bytes = TILE_BYTES,
        .group_bytes = 2 * TILE_BYTES,
        .row_bytes = TILE_ROW_BYTES,
    };
}

/* ---- tiles ---- */

/* Whatever was written is in memory: the compiler does not know what the tile instructions read. */
static inline void settle_memory(const void *local) {
    __asm__ volatile("" : : "r"(local) : "memory");
}

/* Rows and tokens of a block: of its first tiles and of its second ones. */
struct shape {
    int64_t rows[2], tokens[2];
};

static struct shape shape_of(int64_t num_rows, int64_t num_tokens) {
    struct shape shape = {.rows = {num_rows, 0}, .tokens = {num_tokens, 0}};
    if (num_rows > TILE)
        shape = (struct shape){.rows = {TILE, num_rows - TILE}, .tokens = {num_tokens, 0}};
    if (num_tokens > TILE) {
        shape.tokens[0] = TILE;
        shape.tokens[1] = (num_tokens < BLOCK_TOKENS ? num_tokens : BLOCK_TOKENS) - TILE;
    }
    return shape;
}

/* Intel SDM volume 1, 18.3.2: palette 1, bytes of a row and rows of each tile; a tile that is not
 * used has neither. */
struct tile_sizes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

static void set_tile(struct tile_sizes *sizes, int tile, int64_t rows, int64_t row_bytes) {
    if (rows == 0 || row_bytes == 0)
        return;
    sizes->rows[tile] = (uint8_t)rows;
    sizes->row_bytes[tile] = (uint16_t)row_bytes;
}

static void configure_tiles(const struct shape *shape) {
    struct tile_sizes sizes = {.palette = 1};
    for (int half = 0; half < 2; ++half) {
        for (int other = 0; other < 2; ++other)
            set_tile(&sizes, 2 * half + other, shape->rows[half],
                     shape->tokens[other] * (int64_t)sizeof(float));
        set_tile(&sizes, 4 + half, shape->rows[half], TILE_ROW_BYTES);
        if (shape->tokens[half] > 0)
            set_tile(&sizes, 6 + half, TILE, shape->tokens[half] * (int64_t)sizeof(float));
    }
    settle_memory(&sizes);
    _tile_loadconfig(&sizes);
}

/* Adds a chunk's products to one block's sums. inputs: those of the first 16 tokens, the others'
 * piece_size behind. */
GPTOSS_INLINE void multiply_tiles(const struct chunk *chunk, int64_t num_groups,
                                  const struct shape *shape, const uint8_t *inputs,
                                  int64_t piece_size, float sums[4][TILE][TILE], bool two_rows,
                                  bool two_tokens) {
    int64_t strides[2] = {shape->tokens[0] * 4, shape->tokens[1] * 4};
    const uint8_t *low = chunk->tiles, *high = low + chunk->half_bytes;
    const uint8_t *others = inputs + piece_size;
    settle_memory(sums);
    _tile_loadd(0, sums[0], TILE_ROW_BYTES);
    if (two_tokens)
        _tile_loadd(1, sums[1], TILE_ROW_BYTES);
    if (two_rows)
        _tile_loadd(2, sums[2], TILE_ROW_BYTES);
    if (two_rows && two_tokens)
        _tile_loadd(3, sums[3], TILE_ROW_BYTES);
    for (int64_t g = 0; g < num_groups; ++g) {
        _tile_loadd(6, inputs, strides[0]);
        _tile_loadd(4, low, chunk->row_bytes);
        _tile_dpbf16ps(0, 4, 6);
        if (two_tokens) {
            _tile_loadd(7, others, strides[1]);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (two_rows) {
            _tile_loadd(5, high, chunk->row_bytes);
            _tile_dpbf16ps(2, 5, 6);
        }
        if (two_rows && two_tokens)
            _tile_dpbf16ps(3, 5, 7);
        if (chunk->next != NULL)
            for (int64_t r = 0; r < (two_rows ? TASK_ROWS : TILE); ++r)
                _mm_prefetch((const char *)chunk->next + r * chunk->next_row_bytes +
                                 g * TILE_ROW_BYTES,
                             _MM_HINT_T0);
        inputs += TILE * strides[0];
        others += TILE * strides[1];
        low += chunk->group_bytes;
        high += chunk->group_bytes;
    }
    _tile_stored(0, sums[0], TILE_ROW_BYTES);
    if (two_tokens)
        _tile_stored(1, sums[1], TILE_ROW_BYTES);
    if (two_rows)
        _tile_stored(2, sums[2], TILE_ROW_BYTES);
    if (two_rows && two_tokens)
        _tile_stored(3, sums[3], TILE_ROW_BYTES);
}

static void multiply_block(const struct chunk *chunk, int64_t num_groups, const struct shape *shape,
                           const uint8_t *inputs, int64_t piece_size, float sums[4][TILE][TILE]) {
    if (shape->rows[1] > 0 && shape->tokens[1] > 0)
        multiply_tiles(chunk, num_groups, shape, inputs, piece_size, sums, true, true);
    else if (shape->rows[1] > 0)
        multiply_tiles(chunk, num_groups, shape, inputs, piece_size, sums, true, false);
    else if (shape->tokens[1] > 0)
        multiply_tiles(chunk, num_groups, shape, inputs, piece_size, sums, false, true);
    else
        multiply_tiles(chunk, num_groups, shape, inputs, piece_size, sums, false, false);
}

/* ---- the product ---- */

/* Sums [row][token] of a block to results [token][row], and those to where they belong. */
static void finish_block(const struct gptoss_kernels *kernels, const struct gptoss_product *product,
                         int64_t first_token, int64_t first_row, int64_t num_rows,
                         const float *bias, struct workplace *work, float sums[4][TILE][TILE]) {
    for (int tile = 0; tile < 4; ++tile) {
        __m512 block[TILE];
        for (int r = 0; r < TILE; ++r)
            block[r] = _mm512_loadu_ps(sums[tile][r]);
        gptoss_transpose_16(block);
        for (int t = 0; t < TILE; ++t)
            _mm512_storeu_ps(&work->results[tile % 2 * TILE + t][tile / 2 * TILE], block[t]);
    }
    for (int64_t t = 0; t < BLOCK_TOKENS && first_token + t < product->num_tokens; ++t)
        gptoss_product_finish(kernels, product, first_token + t, first_row, num_rows,
                              work->results[t], bias);
}

/* num_tokens <= MAX_TOKENS. */
static void multiply_tokens(const struct gptoss_product *product, int64_t first_token,
                            int64_t num_tokens, int64_t first_row, int64_t num_rows,
                            struct workplace *work) {
    int64_t all_groups = gptoss_bf16_num_groups(product->matrix.num_columns);
    int64_t num_blocks = (num_tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    struct shape configured = {{0}, {0}};
    memset(work->sums, 0, (size_t)num_blocks * sizeof work->sums[0]);
    for (int64_t group = 0; group < all_groups; group += CHUNK_GROUPS) {
        int64_t left = all_groups - group, n = left < CHUNK_GROUPS ? left : CHUNK_GROUPS;
        struct chunk chunk = load_chunk(&product->matrix, first_row, num_rows, group, n, work);
        for (int64_t block = 0; block < num_blocks; ++block) {
            struct shape shape = shape_of(num_rows, num_tokens - block * BLOCK_TOKENS);
            if (memcmp(&shape, &configured, sizeof shape) != 0)
                configure_tiles(&shape);
            configured = shape;
            int64_t token = first_token + block * BLOCK_TOKENS;
            const uint8_t *inputs = (const uint8_t *)product->packed +
                                    token / TILE * piece_bytes(product) +
                                    group * TILE_ROW_BYTES * shape.tokens[0];
            int64_t to_others =
                piece_bytes(product) + group * TILE_ROW_BYTES * (shape.tokens[1] - shape.tokens[0]);
            multiply_block(&chunk, n, &shape, inputs, to_others, work->sums[block]);
            chunk.next = NULL;
        }
    }
}

static void multiply(const struct gptoss_kernels *kernels, const struct gptoss_product *product,
                     int64_t first_row, int64_t num_rows, const float *bias, void *scratch) {
    struct workplace *work = scratch;
    for (int64_t token = 0; token < product->num_tokens; token += MAX_TOKENS) {
        int64_t left = product->num_tokens - token, n = left < MAX_TOKENS ? left : MAX_TOKENS;
        multiply_tokens(product, token, n, first_row, num_rows, work);
        for (int64_t block = 0; block * BLOCK_TOKENS < n; ++block)
            finish_block(kernels, product, token + block * BLOCK_TOKENS, first_row, num_rows, bias,
                         work, work->sums[block]);
    }
    _tile_release();
}

static const struct gptoss_product_form form = {
    .task_rows = TASK_ROWS,
    .piece_tokens = TILE,
    .piece_bytes = piece_bytes,
    .pack = pack,
    .layouts_share_input = gptoss_bf16_layouts_share_input,
    .scratch_bytes = scratch_bytes,
    .multiply = multiply,
};

gptoss_attention_tile_fn gptoss_attention_tile_f32_amx, gptoss_attention_tile_f16_amx;

const struct gptoss_bf16_unit gptoss_bf16_unit_amx = {
    .isa = "amx",
    .vector_form = &form,
    .panel_form = &form,
    .attention_tile_f32 = gptoss_attention_tile_f32_amx,
    .attention_tile_f16 = gptoss_attention_tile_f16_amx,
};
