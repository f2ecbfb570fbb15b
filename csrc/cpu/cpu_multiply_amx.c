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

enum { TILE = 16, TILE_BYTES = 1024, TILE_ROW_BYTES = 64, PANEL_ROWS = 2 * TILE };
enum { MAX_PANELS = 2, CHUNK_GROUPS = 16 };
enum { BLOCK_TOKENS = 2 * TILE, MAX_BLOCKS = 16, MAX_TOKENS = MAX_BLOCKS * BLOCK_TOKENS };

/* The tiles' numbers are parts of the instructions: 0 to 3 sums, 4 and 5 weights, 6 and 7 inputs.
 */

/* A thread's scratch. */
struct workplace {
    _Alignas(64) uint8_t weights[CHUNK_GROUPS][2][TILE_BYTES];      /* an expanded chunk */
    _Alignas(64) float sums[MAX_BLOCKS][MAX_PANELS][4][TILE][TILE]; /* [row][token] by tile */
    float results[BLOCK_TOKENS][MAX_PANELS * PANEL_ROWS];
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

/* Rows and columns of the weights at hand. */
struct place {
    int64_t first_row, num_rows, first_group, num_groups;
};

/* Where the weights begin that are needed next. */
static const uint8_t *address_of(const struct gptoss_matrix *matrix, const struct place *place) {
    return gptoss_bf16_row(matrix, place->first_row) +
           place->first_group * gptoss_bf16_group_bytes(matrix->layout);
}

GPTOSS_INLINE void expand_rows(const struct gptoss_matrix *matrix, enum gptoss_layout layout,
                               const struct place *place, const uint8_t *next,
                               struct workplace *work) {
    int64_t num_bytes = place->num_groups * gptoss_bf16_group_bytes(layout);
    for (int64_t r = 0; r < place->num_rows; ++r) {
        const uint8_t *row = gptoss_bf16_row(matrix, place->first_row + r),
                      *scales = gptoss_bf16_scales(matrix, place->first_row + r);
        for (int64_t at = 0; at < num_bytes; at += 64)
            _mm_prefetch((const char *)next + r * matrix->row_bytes + at, _MM_HINT_T0);
        uint8_t *out = work->weights[0][r / TILE] + r % TILE * TILE_ROW_BYTES;
        for (int64_t i = 0; i < place->num_groups; ++i, out += sizeof work->weights[0]) {
            int64_t g = place->first_group + i;
            int64_t width = gptoss_bf16_group_width(matrix->num_columns, g);
            _mm512_storeu_si512(out, gptoss_bf16_load(layout, row, scales, g, width));
        }
    }
}

static void expand_chunk(const struct gptoss_matrix *matrix, const struct place *place,
                         const uint8_t *next, struct workplace *work) {
    if (matrix->layout == GPTOSS_LAYOUT_MXFP4)
        expand_rows(matrix, GPTOSS_LAYOUT_MXFP4, place, next, work);
    else if (matrix->layout == GPTOSS_LAYOUT_MXFP4_GGUF)
        expand_rows(matrix, GPTOSS_LAYOUT_MXFP4_GGUF, place, next, work);
    else
        expand_rows(matrix, GPTOSS_LAYOUT_BF16, place, next, work);
}

/* bf16 rows are tiles as they lie in memory, but for a group that they do not fill. Many tokens
 * earn a copy that is aligned. */
static struct chunk load_chunk(const struct gptoss_matrix *matrix, const struct place *place,
                               const struct place *next, int64_t num_tokens,
                               struct workplace *work) {
    int64_t end = place->first_group + place->num_groups;
    if (matrix->layout == GPTOSS_LAYOUT_BF16 && end * GPTOSS_BF16_GROUP <= matrix->num_columns &&
        num_tokens <= BLOCK_TOKENS)
        return (struct chunk){
            .tiles = address_of(matrix, place),
            .half_bytes = TILE * matrix->row_bytes,
            .group_bytes = TILE_ROW_BYTES,
            .row_bytes = matrix->row_bytes,
            .next = address_of(matrix, next),
            .next_row_bytes = matrix->row_bytes,
        };
    expand_chunk(matrix, place, address_of(matrix, next), work);
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

/* Adds a chunk's products to one block's sums, which begin here if is_first. inputs: those of the
 * first 16 tokens, the others' piece_size behind. */
GPTOSS_INLINE void multiply_tiles(const struct chunk *chunk, int64_t num_groups,
                                  const struct shape *shape, const uint8_t *inputs,
                                  int64_t piece_size, float sums[4][TILE][TILE], bool is_first,
                                  bool two_rows, bool two_tokens) {
    int64_t strides[2] = {shape->tokens[0] * 4, shape->tokens[1] * 4};
    const uint8_t *low = chunk->tiles, *high = low + chunk->half_bytes;
    const uint8_t *others = inputs + piece_size;
    settle_memory(sums);
#define BEGIN_TILE(t)                                                                              \
    do {                                                                                           \
        if (is_first)                                                                              \
            _tile_zero(t);                                                                         \
        else                                                                                       \
            _tile_loadd(t, sums[t], TILE_ROW_BYTES);                                               \
    } while (0)
    BEGIN_TILE(0);
    if (two_tokens)
        BEGIN_TILE(1);
    if (two_rows)
        BEGIN_TILE(2);
    if (two_rows && two_tokens)
        BEGIN_TILE(3);
#undef BEGIN_TILE
    for (int64_t g = 0; g < num_groups; ++g) {
        /* Many tokens' inputs pass the first-level cache by, which the weights fill. */
        if (two_tokens)
            _tile_stream_loadd(6, inputs, strides[0]);
        else
            _tile_loadd(6, inputs, strides[0]);
        _tile_loadd(4, low, chunk->row_bytes);
        _tile_dpbf16ps(0, 4, 6);
        if (two_tokens) {
            _tile_stream_loadd(7, others, strides[1]);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (two_rows) {
            _tile_loadd(5, high, chunk->row_bytes);
            _tile_dpbf16ps(2, 5, 6);
        }
        if (two_rows && two_tokens)
            _tile_dpbf16ps(3, 5, 7);
        if (chunk->next != NULL)
            for (int64_t r = 0; r < (two_rows ? PANEL_ROWS : TILE); ++r)
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
                           const uint8_t *inputs, int64_t piece_size, float sums[4][TILE][TILE],
                           bool is_first) {
#define TILES(two_rows, two_tokens)                                                                \
    multiply_tiles(chunk, num_groups, shape, inputs, piece_size, sums, is_first, two_rows,         \
                   two_tokens)
    if (shape->rows[1] > 0 && shape->tokens[1] > 0)
        TILES(true, true);
    else if (shape->rows[1] > 0)
        TILES(true, false);
    else if (shape->tokens[1] > 0)
        TILES(false, true);
    else
        TILES(false, false);
#undef TILES
}

/* ---- the product ---- */

/* Sums [row][token] of a block to results [token][row], and those to where they belong. */
static void finish_block(const struct gptoss_kernels *kernels, const struct gptoss_product *product,
                         const struct gptoss_product_part *part, int64_t first_token,
                         const float *bias, struct workplace *work, int64_t number) {
    for (int64_t panel = 0; panel * PANEL_ROWS < part->num_rows; ++panel)
        for (int tile = 0; tile < 4; ++tile) {
            __m512 block[TILE];
            for (int r = 0; r < TILE; ++r)
                block[r] = _mm512_loadu_ps(work->sums[number][panel][tile][r]);
            gptoss_transpose_16(block);
            float *to = &work->results[tile % 2 * TILE][panel * PANEL_ROWS + tile / 2 * TILE];
            for (int t = 0; t < TILE; ++t)
                _mm512_storeu_ps(to + t * MAX_PANELS * PANEL_ROWS, block[t]);
        }
    for (int64_t t = 0; t < BLOCK_TOKENS && first_token + t < part->end_token; ++t)
        gptoss_product_finish(kernels, product, part, first_token + t, work->results[t], bias);
}

/* The tokens first_token .. first_token + num_tokens - 1, MAX_TOKENS at most, of a product. */
struct pass {
    const struct gptoss_product *product;
    int64_t first_token, num_tokens;
    struct shape configured; /* of the tiles */
};

/* Adds what one place of the weights contributes to the sums of a panel. */
static void multiply_place(struct pass *pass, const struct place *place, const struct place *next,
                           int64_t panel, struct workplace *work) {
    const struct gptoss_product *product = pass->product;
    struct chunk chunk = load_chunk(&product->matrix, place, next, pass->num_tokens, work);
    for (int64_t block = 0; block * BLOCK_TOKENS < pass->num_tokens; ++block) {
        struct shape shape = shape_of(place->num_rows, pass->num_tokens - block * BLOCK_TOKENS);
        if (memcmp(&shape, &pass->configured, sizeof shape) != 0)
            configure_tiles(&shape);
        pass->configured = shape;
        int64_t token = pass->first_token + block * BLOCK_TOKENS;
        int64_t at = place->first_group * TILE_ROW_BYTES;
        const uint8_t *inputs = (const uint8_t *)product->packed +
                                token / TILE * piece_bytes(product) + at * shape.tokens[0];
        int64_t to_others = piece_bytes(product) + at * (shape.tokens[1] - shape.tokens[0]);
        multiply_block(&chunk, place->num_groups, &shape, inputs, to_others,
                       work->sums[block][panel], place->first_group == 0);
        chunk.next = NULL;
    }
}

static int64_t at_most(int64_t n, int64_t limit) {
    return n < limit ? n : limit;
}

/* Where the weights begin that are needed after a place. A thread goes on with the rows below, most
 * likely. Of a single panel's codes those are all that is asked for: a panel ahead is early enough,
 * a chunk of columns is not. */
static struct place next_place(const struct gptoss_matrix *matrix, const struct place *place,
                               int64_t first_row, int64_t num_rows) {
    struct place next = *place;
    bool is_last_panel = place->first_row + PANEL_ROWS >= first_row + num_rows;
    bool are_single_codes = num_rows <= PANEL_ROWS && gptoss_layout_is_scaled(matrix->layout);
    next.first_row += PANEL_ROWS;
    if (!is_last_panel || are_single_codes)
        return next;
    next.first_group += CHUNK_GROUPS;
    if (next.first_group < gptoss_bf16_num_groups(matrix->num_columns))
        next.first_row = first_row;
    else
        next.first_group = 0;
    return next;
}

static void multiply_pass(struct pass *pass, int64_t first_row, int64_t num_rows,
                          struct workplace *work) {
    int64_t all_groups = gptoss_bf16_num_groups(pass->product->matrix.num_columns);
    for (int64_t group = 0; group < all_groups; group += CHUNK_GROUPS)
        for (int64_t row = 0; row < num_rows; row += PANEL_ROWS) {
            struct place place = {first_row + row, at_most(num_rows - row, PANEL_ROWS), group,
                                  at_most(all_groups - group, CHUNK_GROUPS)};
            struct place next = next_place(&pass->product->matrix, &place, first_row, num_rows);
            multiply_place(pass, &place, &next, row / PANEL_ROWS, work);
        }
}

static void multiply(const struct gptoss_kernels *kernels, const struct gptoss_product *product,
                     const struct gptoss_product_part *part, const float *bias, void *scratch) {
    struct workplace *work = scratch;
    struct pass pass = {.product = product, .first_token = part->first_token};
    for (; pass.first_token < part->end_token; pass.first_token += MAX_TOKENS) {
        pass.num_tokens = at_most(part->end_token - pass.first_token, MAX_TOKENS);
        multiply_pass(&pass, part->first_row, part->num_rows, work);
        for (int64_t block = 0; block * BLOCK_TOKENS < pass.num_tokens; ++block)
            finish_block(kernels, product, part, pass.first_token + block * BLOCK_TOKENS, bias,
                         work, block);
    }
    _tile_release();
}

static const struct gptoss_product_form vector_form = {
    .task_rows = PANEL_ROWS,
    .piece_tokens = TILE,
    .piece_bytes = piece_bytes,
    .pack = pack,
    .layouts_share_input = gptoss_bf16_layouts_share_input,
    .scratch_bytes = scratch_bytes,
    .multiply = multiply,
};

static const struct gptoss_product_form panel_form = {
    .task_rows = MAX_PANELS * PANEL_ROWS,
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
    .vector_form = &vector_form,
    .panel_form = &panel_form,
    .attention_tile_f32 = gptoss_attention_tile_f32_amx,
    .attention_tile_f16 = gptoss_attention_tile_f16_amx,
};
