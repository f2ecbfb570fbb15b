#include "vulkan/vulkan_weights.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "numeric/block_formats.h"
#include "platform/allocator.h"
#include "status.h"
#include "vulkan/vulkan_tiles.h"

#define ALIGNMENT 256u
#define BLOCK_BYTES (UINT64_C(1) << 30)
#define STAGING_BYTES (UINT64_C(32) << 20) /* each of two */
#define TASK_BYTES 65536u                  /* of a task that fills them, about */
/* Bits of 2^-8 and 2^14: in between float16 keeps what matters of a weight. */
#define MIN_F16_LARGEST 0x3B800000u
#define MAX_F16_LARGEST 0x46800000u
#define MAX_F16_SCALE 128 /* of MXFP4: float16 holds 2^14 times 2^1 */

struct gptoss_weight_entry {
    struct gptoss_weight weight; /* of a vector: one matrix of num_vectors rows */
    bool used;
    enum gptoss_device_form form;
    uint32_t layout;
    _Atomic uint32_t largest;                 /* the bits of its largest magnitude as float32 */
    _Atomic uint32_t most_scale, least_scale; /* of MXFP4 in tiles; the latter is 255 minus that */
    uint64_t row_bytes, scale_row_bytes, num_rows; /* on the device; in tiles, of those */
    uint64_t scales_offset;                        /* behind data */
    uint64_t num_bytes, address;
    size_t block;
    uint64_t block_offset;
};

/* ---- the table ---- */

static bool is_same(const struct gptoss_weight_entry *entry, const struct gptoss_weight *weight,
                    enum gptoss_device_form form) {
    const struct gptoss_weight *other = &entry->weight;
    return other->data == weight->data && other->num_rows == weight->num_rows &&
           other->num_columns == weight->num_columns && other->transposed == weight->transposed &&
           other->num_matrices == weight->num_matrices && entry->form == form;
}

static size_t slot_of(const struct gptoss_vulkan_weights *weights,
                      const struct gptoss_weight *weight, enum gptoss_device_form form) {
    uint64_t hash = ((uint64_t)(uintptr_t)weight->data ^ (uint64_t)weight->num_rows << 40) *
                    0x9E3779B97F4A7C15u;
    size_t slot = (size_t)(hash >> 20) & (weights->capacity - 1);
    while (weights->entries[slot].used && !is_same(&weights->entries[slot], weight, form))
        slot = (slot + 1) & (weights->capacity - 1);
    return slot;
}

static enum gptoss_status grow(struct gptoss_vulkan_weights *weights) {
    if (2 * (weights->count + 1) <= weights->capacity)
        return GPTOSS_OK;
    struct gptoss_vulkan_weights larger = *weights;
    larger.capacity = weights->capacity > 0 ? 2 * weights->capacity : 64;
    larger.entries = gptoss_allocate(larger.capacity, sizeof *larger.entries);
    if (larger.entries == NULL)
        return GPTOSS_ERROR_MEMORY;
    for (size_t i = 0; i < weights->capacity; ++i) {
        const struct gptoss_weight_entry *entry = &weights->entries[i];
        if (entry->used)
            larger.entries[slot_of(&larger, &entry->weight, entry->form)] = *entry;
    }
    gptoss_free(weights->entries);
    *weights = larger;
    return GPTOSS_OK;
}

static uint64_t align(uint64_t num_bytes) {
    return (num_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static bool is_in_tiles(const struct gptoss_weight_entry *entry) {
    return entry->form == GPTOSS_FORM_TILES || entry->form == GPTOSS_FORM_PAIR_TILES;
}

/* Pairs fill two tiles together. */
static uint64_t tiles_of_matrix(const struct gptoss_weight_entry *entry) {
    uint64_t rows = (uint64_t)entry->weight.num_rows;
    return entry->form == GPTOSS_FORM_PAIR_TILES ? (rows + 31) / 32 * 2 : (rows + 15) / 16;
}

/* The form it gets. */
static enum gptoss_device_form form_of(const struct gptoss_vulkan_weights *weights,
                                       const struct gptoss_weight *weight,
                                       enum gptoss_device_form form) {
    bool has_layout = weight->dtype == GPTOSS_DTYPE_MXFP4 ||
                      weight->dtype == GPTOSS_DTYPE_MXFP4_GGUF ||
                      weight->dtype == GPTOSS_DTYPE_Q8_0;
    if (form == GPTOSS_FORM_ROWS || form == GPTOSS_FORM_FLOAT32)
        return form;
    return weights->has_tiles && has_layout && !weight->transposed &&
                   weight->num_columns <= GPTOSS_MAX_TILE_COLUMNS
               ? form
               : GPTOSS_FORM_ROWS;
}

/* The layout on the device, and its sizes. Formats without a layout of their own become float32. */
static void lay_out(struct gptoss_weight_entry *entry) {
    const struct gptoss_weight *weight = &entry->weight;
    uint64_t blocks = (uint64_t)(weight->num_columns + 31) / 32;
    entry->num_rows = (uint64_t)weight->num_matrices * (uint64_t)weight->num_rows;
    if (is_in_tiles(entry)) {
        bool is_mxfp4 = weight->dtype != GPTOSS_DTYPE_Q8_0;
        entry->layout = is_mxfp4 ? GPTOSS_DEVICE_MXFP4_TILES : GPTOSS_DEVICE_Q8_TILES;
        entry->num_rows = (uint64_t)weight->num_matrices * tiles_of_matrix(entry);
        entry->row_bytes = gptoss_tile_bytes(weight->num_columns, is_mxfp4);
        entry->scale_row_bytes = gptoss_tile_scale_bytes(weight->num_columns, is_mxfp4);
        entry->scales_offset = align(entry->num_rows * entry->row_bytes);
        entry->num_bytes = entry->scales_offset + align(entry->num_rows * entry->scale_row_bytes);
        return;
    }
    enum gptoss_dtype dtype = entry->form == GPTOSS_FORM_FLOAT32 ? GPTOSS_DTYPE_F32 : weight->dtype;
    switch (dtype) {
    case GPTOSS_DTYPE_F16:
    case GPTOSS_DTYPE_BF16:
        entry->layout = dtype == GPTOSS_DTYPE_F16 ? GPTOSS_DEVICE_F16 : GPTOSS_DEVICE_BF16;
        entry->row_bytes = blocks * 64;
        break;
    case GPTOSS_DTYPE_MXFP4:
    case GPTOSS_DTYPE_MXFP4_GGUF:
        entry->layout = GPTOSS_DEVICE_MXFP4;
        entry->row_bytes = blocks * 16;
        entry->scale_row_bytes = (blocks + 3) / 4 * 4;
        break;
    case GPTOSS_DTYPE_Q8_0:
        entry->layout = GPTOSS_DEVICE_Q8;
        entry->row_bytes = blocks * 32;
        entry->scale_row_bytes = (blocks + 1) / 2 * 4;
        break;
    default: entry->layout = GPTOSS_DEVICE_F32; entry->row_bytes = blocks * 128;
    }
    entry->scales_offset = align(entry->num_rows * entry->row_bytes);
    entry->num_bytes = entry->scales_offset + align(entry->num_rows * entry->scale_row_bytes);
}

enum gptoss_status gptoss_vulkan_weight(struct gptoss_vulkan_weights *weights,
                                        const struct gptoss_weight *weight,
                                        enum gptoss_device_form form,
                                        struct gptoss_device_weight *out) {
    *out = (struct gptoss_device_weight){0};
    if (weight == NULL || weight->data == NULL)
        return GPTOSS_OK;
    GPTOSS_TRY(grow(weights));
    form = form_of(weights, weight, form);
    struct gptoss_weight_entry *entry = &weights->entries[slot_of(weights, weight, form)];
    if (!entry->used) {
        *entry = (struct gptoss_weight_entry){.weight = *weight, .used = true, .form = form};
        lay_out(entry);
        ++weights->count;
        weights->num_bytes += entry->num_bytes;
    }
    *out = (struct gptoss_device_weight){
        .data = entry->address,
        .scales = entry->scale_row_bytes > 0 ? entry->address + entry->scales_offset : 0,
        .layout = entry->layout,
        .num_columns = (uint32_t)weight->num_columns,
        .scale_range = {(uint8_t)(255 - entry->least_scale), (uint8_t)entry->most_scale},
        .fits_f16 = entry->largest >= MIN_F16_LARGEST && entry->largest < MAX_F16_LARGEST,
    };
    return GPTOSS_OK;
}

enum gptoss_status gptoss_vulkan_vector(struct gptoss_vulkan_weights *weights,
                                        const struct gptoss_vector *vector, uint64_t *address_out) {
    *address_out = 0;
    if (vector == NULL || vector->data == NULL)
        return GPTOSS_OK;
    /* One row, so that no padding comes between vectors. */
    int64_t num_elements = vector->num_vectors * vector->num_elements;
    const struct gptoss_weight row = {
        .dtype = vector->dtype,
        .num_matrices = 1,
        .num_rows = 1,
        .num_columns = num_elements,
        .data = vector->data,
    };
    struct gptoss_device_weight weight;
    GPTOSS_TRY(gptoss_vulkan_weight(weights, &row, GPTOSS_FORM_FLOAT32, &weight));
    *address_out = weight.data;
    return GPTOSS_OK;
}

/* ---- what goes to the device ---- */

/* 32 codes, two a byte from the low nibble on, become what push_constants.h describes. */
static void order_codes(const uint8_t *codes, uint8_t *out) {
    for (int i = 0; i < 4; ++i) {
        uint32_t word = (uint32_t)codes[4 * i] | (uint32_t)codes[4 * i + 1] << 8 |
                        (uint32_t)codes[4 * i + 2] << 16 | (uint32_t)codes[4 * i + 3] << 24;
        uint32_t ordered = (word << 12 & 0x80008000u) | (word << 9 & 0x0E000E00u) |
                           (word << 5 & 0x10001000u) | (word << 2 & 0x01C001C0u) |
                           (word << 3 & 0x40004000u) | (word >> 5 & 0x00380038u) |
                           (word >> 2 & 0x20002000u) | (word >> 12 & 0x00070007u);
        for (int j = 0; j < 4; ++j)
            out[4 * i + j] = (uint8_t)(ordered >> 8 * j);
    }
}

/* Blocks of GGUF: byte j holds elements j and j + 16. */
static void order_gguf_codes(const uint8_t *block, uint8_t *out) {
    uint8_t codes[16];
    for (int j = 0; j < 8; ++j) {
        uint8_t a = block[2 * j], b = block[2 * j + 1];
        codes[j] = (uint8_t)((a & 15) | (b & 15) << 4);
        codes[8 + j] = (uint8_t)(a >> 4 | (b & 0xF0));
    }
    order_codes(codes, out);
}

static void fill_blocks(const struct gptoss_weight *weight, const uint8_t *row, uint8_t *codes,
                        uint8_t *scales) {
    bool is_mxfp4 = weight->dtype == GPTOSS_DTYPE_MXFP4_GGUF;
    for (int64_t block = 0; block < weight->num_columns / 32; ++block) {
        if (is_mxfp4) {
            scales[block] = row[block * 17];
            order_gguf_codes(row + block * 17 + 1, codes + block * 16);
        } else {
            memcpy(scales + block * 2, row + block * 34, 2);
            memcpy(codes + block * 32, row + block * 34 + 2, 32);
        }
    }
}

/* A column of a matrix stored [inputs][outputs], element by element. */
static void gather(const struct gptoss_weight *weight, const uint8_t *matrix, int64_t row,
                   uint64_t element, uint8_t *out) {
    uint64_t line = (uint64_t)(weight->num_stored > 0 ? weight->num_stored : weight->num_rows);
    for (int64_t column = 0; column < weight->num_columns; ++column)
        memcpy(out + (uint64_t)column * element,
               matrix + ((uint64_t)column * line + (uint64_t)row) * element, element);
}

/* Codes and scales of a row; those of a block in their order on the device. */
static void fill_row(const struct gptoss_weight_entry *entry, int64_t matrix, int64_t row,
                     uint8_t *codes, uint8_t *scales) {
    const struct gptoss_weight *weight = &entry->weight;
    uint64_t columns = (uint64_t)weight->num_columns;
    uint64_t from_bytes = gptoss_dtype_row_bytes(weight->dtype, columns);
    const uint8_t *first = weight->data + (uint64_t)matrix * weight->matrix_bytes;
    const uint8_t *from = first + (uint64_t)row * from_bytes;
    const uint8_t *from_scales = NULL;
    if (gptoss_dtype_has_planes(weight->dtype))
        from_scales = weight->scales + (uint64_t)matrix * weight->scale_matrix_bytes +
                      (uint64_t)row * columns / 32;
    if (weight->dtype == GPTOSS_DTYPE_Q8_0 || weight->dtype == GPTOSS_DTYPE_MXFP4_GGUF) {
        if (entry->form != GPTOSS_FORM_FLOAT32) {
            fill_blocks(weight, from, codes, scales);
            return;
        }
    }
    if (weight->transposed) {
        gather(weight, first, row, gptoss_dtype_bytes(weight->dtype), codes);
    } else if (entry->layout == GPTOSS_DEVICE_F32 && weight->dtype != GPTOSS_DTYPE_F32) {
        gptoss_decode_row(weight->dtype, from, from_scales, columns, (float *)codes);
    } else if (weight->dtype == GPTOSS_DTYPE_MXFP4) {
        for (uint64_t i = 0; i < from_bytes; i += 16)
            order_codes(from + i, codes + i);
        memcpy(scales, from_scales, columns / 32);
    } else {
        memcpy(codes, from, from_bytes);
    }
}

/* A row of the device's memory: one of the weight, or a tile of them, padded with zeros. */
static void fill_line(const struct gptoss_weight_entry *entry, uint64_t index, uint8_t *codes,
                      uint8_t *scales) {
    const struct gptoss_weight *weight = &entry->weight;
    memset(codes, 0, entry->row_bytes);
    memset(scales, 0, entry->scale_row_bytes);
    if (!is_in_tiles(entry)) {
        fill_row(entry, (int64_t)(index / (uint64_t)weight->num_rows),
                 (int64_t)(index % (uint64_t)weight->num_rows), codes, scales);
        return;
    }
    uint8_t row_codes[GPTOSS_MAX_TILE_COLUMNS], row_scales[GPTOSS_MAX_TILE_COLUMNS / 16];
    bool is_pair = entry->form == GPTOSS_FORM_PAIR_TILES,
         is_mxfp4 = weight->dtype != GPTOSS_DTYPE_Q8_0;
    int64_t matrix = (int64_t)(index / tiles_of_matrix(entry));
    int64_t tile = (int64_t)(index % tiles_of_matrix(entry));
    for (int i = 0; i < 16; ++i) {
        int64_t row = is_pair ? tile / 2 * 32 + 2 * i + tile % 2 : tile * 16 + i;
        if (row >= weight->num_rows)
            break;
        fill_row(entry, matrix, row, row_codes, row_scales);
        gptoss_tile_put_row(row_codes, row_scales, weight->num_columns, is_mxfp4, i, codes, scales);
    }
}

/* An upper bound, within a factor of 8, of the magnitudes in a row, as float32. */
static float largest_of(const struct gptoss_weight_entry *entry, const uint8_t *codes,
                        const uint8_t *scales) {
    float largest = 0, value;
    uint32_t bits = 0;
    switch (entry->layout) {
    case GPTOSS_DEVICE_MXFP4_TILES:
    case GPTOSS_DEVICE_Q8_TILES: return 0; /* their scales are never in float16 */
    case GPTOSS_DEVICE_MXFP4:
        for (uint64_t i = 0; i < entry->scale_row_bytes; ++i)
            bits = scales[i] > bits ? scales[i] : bits;
        if (bits > MAX_F16_SCALE)
            return INFINITY;
        return 4 * gptoss_float_from_e8m0((uint8_t)bits);
    case GPTOSS_DEVICE_Q8:
        for (uint64_t i = 0; i < entry->scale_row_bytes; i += 2) {
            value = fabsf(gptoss_load_f16(scales + i));
            largest = value > largest ? value : largest;
        }
        return 127 * largest;
    case GPTOSS_DEVICE_F32:
        for (uint64_t i = 0; i < entry->row_bytes / 4; ++i) {
            value = fabsf(((const float *)codes)[i]);
            largest = value > largest ? value : largest;
        }
        return largest;
    default:
        for (uint64_t i = 0; i < entry->row_bytes / 2; ++i) {
            uint32_t magnitude = ((const uint16_t *)codes)[i] & 0x7FFFu;
            bits = magnitude > bits ? magnitude : bits;
        }
        return entry->layout == GPTOSS_DEVICE_F16 ? gptoss_float_from_f16((uint16_t)bits)
                                                  : gptoss_float_from_bf16((uint16_t)bits);
    }
}

/* ---- loading ---- */

struct fill {
    struct gptoss_weight_entry *entry;
    uint64_t first_row, num_rows, task_rows;
    uint8_t *codes, *scales;
};

static void raise_to(_Atomic uint32_t *value, uint32_t least) {
    uint32_t known = atomic_load(value);
    while (least > known && !atomic_compare_exchange_weak(value, &known, least))
        continue;
}

static void fill_task(void *context, int64_t task, int thread) {
    (void)thread;
    const struct fill *fill = context;
    uint64_t begin = (uint64_t)task * fill->task_rows, end = begin + fill->task_rows;
    uint32_t largest = 0;
    struct gptoss_scale_range range = {255, 0};
    for (uint64_t row = begin; row < end && row < fill->num_rows; ++row) {
        uint8_t *codes = fill->codes + row * fill->entry->row_bytes;
        uint8_t *scales = fill->scales + row * fill->entry->scale_row_bytes;
        fill_line(fill->entry, fill->first_row + row, codes, scales);
        if (fill->entry->layout == GPTOSS_DEVICE_MXFP4_TILES)
            gptoss_tile_widen_range(scales, fill->entry->weight.num_columns, &range);
        uint32_t bits = gptoss_bits_from_float(largest_of(fill->entry, codes, scales));
        largest = bits > largest ? bits : largest; /* NaN is above all */
    }
    raise_to(&fill->entry->largest, largest);
    raise_to(&fill->entry->most_scale, range.most);
    raise_to(&fill->entry->least_scale, 255u - range.least);
}

static enum gptoss_status
load_entry(struct gptoss_vulkan_weights *weights, struct gptoss_weight_entry *entry,
           struct gptoss_vulkan_queue *queue, struct gptoss_thread_pool *pool,
           const struct gptoss_vulkan_memory staging[2], int *half, struct gptoss_error *error) {
    const struct gptoss_vulkan_memory *to = &weights->blocks[entry->block];
    uint64_t one = entry->row_bytes + entry->scale_row_bytes;
    uint64_t most = (STAGING_BYTES - 16) / one;
    if (most == 0)
        return gptoss_error_set(error, GPTOSS_ERROR_UNSUPPORTED,
                                "a row of a weight is larger than the staging buffer");
    for (uint64_t row = 0; row < entry->num_rows; row += most, *half ^= 1) {
        uint64_t left = entry->num_rows - row, count = left < most ? left : most;
        uint64_t codes_bytes = count * entry->row_bytes;
        struct fill fill = {entry,
                            row,
                            count,
                            1 + TASK_BYTES / one,
                            staging[*half].host,
                            (uint8_t *)staging[*half].host + codes_bytes};
        gptoss_thread_pool_run(pool, fill_task, &fill,
                               (int64_t)((count + fill.task_rows - 1) / fill.task_rows), NULL,
                               NULL);
        enum gptoss_status status = gptoss_vulkan_list_copy(
            queue, &staging[*half], 0, to, entry->block_offset + row * entry->row_bytes,
            codes_bytes, false);
        if (status == GPTOSS_OK && entry->scale_row_bytes > 0)
            status = gptoss_vulkan_list_copy(queue, &staging[*half], codes_bytes, to,
                                             entry->block_offset + entry->scales_offset +
                                                 row * entry->scale_row_bytes,
                                             count * entry->scale_row_bytes, true);
        if (status != GPTOSS_OK)
            return gptoss_vulkan_list_refused(error);
        GPTOSS_TRY(gptoss_vulkan_start(queue, false, error)); /* waits for the other half's */
    }
    return GPTOSS_OK;
}

/* Places entries into blocks of memory, which are made full one after another. */
static enum gptoss_status allocate(struct gptoss_vulkan_weights *weights,
                                   struct gptoss_vulkan_device *device,
                                   struct gptoss_error *error) {
    uint64_t block_bytes =
        device->max_allocation_bytes < BLOCK_BYTES ? device->max_allocation_bytes : BLOCK_BYTES;
    weights->blocks = gptoss_allocate(weights->count, sizeof *weights->blocks);
    if (weights->blocks == NULL)
        return gptoss_error_memory(error, weights->count * sizeof *weights->blocks, "weights");
    uint64_t used = 0, *sizes = gptoss_allocate(weights->count, sizeof *sizes);
    if (sizes == NULL)
        return gptoss_error_memory(error, weights->count * sizeof *sizes, "weights");
    size_t num_blocks = 0;
    for (size_t i = 0; i < weights->capacity; ++i) {
        struct gptoss_weight_entry *entry = &weights->entries[i];
        if (!entry->used)
            continue;
        if (num_blocks == 0 || used + entry->num_bytes > block_bytes) {
            ++num_blocks;
            used = 0;
        }
        entry->block = num_blocks - 1;
        entry->block_offset = used;
        used += entry->num_bytes;
        sizes[entry->block] = used;
    }
    enum gptoss_status status = GPTOSS_OK;
    for (size_t i = 0; i < num_blocks && status == GPTOSS_OK; ++i) {
        status = gptoss_vulkan_memory_create(device, GPTOSS_VULKAN_DEVICE, sizes[i], "weights",
                                             &weights->blocks[i], error);
        weights->num_blocks += status == GPTOSS_OK;
    }
    gptoss_free(sizes);
    for (size_t i = 0; i < weights->capacity && status == GPTOSS_OK; ++i) {
        struct gptoss_weight_entry *entry = &weights->entries[i];
        if (entry->used)
            entry->address = weights->blocks[entry->block].address + entry->block_offset;
    }
    return status;
}

static enum gptoss_status load_all(struct gptoss_vulkan_weights *weights,
                                   struct gptoss_vulkan_queue *queue,
                                   struct gptoss_thread_pool *pool,
                                   const struct gptoss_vulkan_memory staging[2],
                                   gptoss_poll_fn poll, void *user, struct gptoss_error *error) {
    uint64_t done = 0;
    int half = 0;
    for (size_t i = 0; i < weights->capacity; ++i) {
        struct gptoss_weight_entry *entry = &weights->entries[i];
        if (!entry->used)
            continue;
        GPTOSS_TRY(load_entry(weights, entry, queue, pool, staging, &half, error));
        done += entry->num_bytes;
        if (poll != NULL && poll(user, done, weights->num_bytes) != 0)
            return gptoss_error_set(error, GPTOSS_ERROR_INTERRUPTED, "interrupted while loading");
    }
    return GPTOSS_OK;
}

enum gptoss_status gptoss_vulkan_weights_load(struct gptoss_vulkan_weights *weights,
                                              struct gptoss_vulkan_queue *queue,
                                              struct gptoss_thread_pool *pool, gptoss_poll_fn poll,
                                              void *user, struct gptoss_error *error) {
    struct gptoss_vulkan_device *device = queue->device;
    struct gptoss_vulkan_memory staging[2] = {{0}};
    enum gptoss_status status = allocate(weights, device, error);
    for (int i = 0; i < 2 && status == GPTOSS_OK; ++i)
        status = gptoss_vulkan_memory_create(device, GPTOSS_VULKAN_READBACK, STAGING_BYTES,
                                             "staging", &staging[i], error);
    if (status == GPTOSS_OK)
        status = load_all(weights, queue, pool, staging, poll, user, error);
    enum gptoss_status end =
        gptoss_vulkan_wait(queue, NULL, NULL, status == GPTOSS_OK ? error : NULL);
    gptoss_vulkan_forget(queue);
    for (int i = 0; i < 2; ++i)
        gptoss_vulkan_memory_release(device, &staging[i]);
    return status != GPTOSS_OK ? status : end;
}

void gptoss_vulkan_weights_release(struct gptoss_vulkan_weights *weights,
                                   struct gptoss_vulkan_device *device) {
    for (size_t i = 0; i < weights->num_blocks; ++i)
        gptoss_vulkan_memory_release(device, &weights->blocks[i]);
    gptoss_free(weights->blocks);
    gptoss_free(weights->entries);
    *weights = (struct gptoss_vulkan_weights){.has_tiles = weights->has_tiles};
}
