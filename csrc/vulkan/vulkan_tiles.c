#include "vulkan/vulkan_tiles.h"

#include <string.h>

#include "numeric/dtype.h"
#include "status.h"
#include "vulkan/shaders/push_constants.h"

#define NAN_SCALE 255
/* The largest scale's factor in float16, as it is stored. */
#define MAX_HALF_EXPONENT 30
#define MAX_SCALE_RANGE 40 /* beyond it scales stay outside */
#define MIN_MOST_SCALE 64  /* the shift is positive; factors of sums are far from the least */

static uint64_t steps_of(int64_t num_columns) {
    return (uint64_t)(num_columns + 63) / 64;
}

uint64_t gptoss_tile_bytes(int64_t num_columns, bool is_mxfp4) {
    return steps_of(num_columns) * 32 * (is_mxfp4 ? 16 : 32);
}

uint64_t gptoss_tile_scale_bytes(int64_t num_columns, bool is_mxfp4) {
    return steps_of(num_columns) * 8 * (is_mxfp4 ? 4 : 8);
}

/* Whether the magnitudes of a block of MXFP4 are. */
static bool is_zero(const uint8_t *codes) {
    uint32_t words[4];
    memcpy(words, codes, sizeof words);
    return ((words[0] | words[1] | words[2] | words[3]) & 0x0FFF0FFFu) == 0;
}

static void put_mxfp4(const uint8_t *codes, const uint8_t *scales, int64_t num_blocks, int g,
                      int high, uint8_t *tile, uint8_t *tile_scales) {
    for (int64_t block = 0; block < num_blocks; ++block) {
        int64_t piece = block / 2, word = block % 2 * 2 + high;
        for (int t = 0; t < 4; ++t)
            memcpy(tile + ((piece * 32 + 4 * g + t) * 4 + word) * 4, codes + block * 16 + t * 4, 4);
        tile_scales[(piece * 8 + g) * 4 + word] =
            is_zero(codes + block * 16) && scales[block] != NAN_SCALE ? 0 : scales[block];
    }
}

static void put_q8(const uint8_t *codes, const uint8_t *scales, int64_t num_blocks, int g, int high,
                   uint8_t *tile, uint8_t *tile_scales) {
    static const uint8_t order[8] = {0, 1, 4, 5, 2, 3, 6, 7};
    for (int64_t block = 0; block < num_blocks; ++block) {
        for (int t = 0; t < 4; ++t) {
            uint8_t *to = tile + ((block * 32 + 4 * g + t) * 2 + high) * 8;
            for (int i = 0; i < 8; ++i)
                to[i] = codes[block * 32 + t * 8 + order[i]] ^ 0x80;
        }
        memcpy(tile_scales + (block * 8 + g) * 4 + high * 2, scales + block * 2, 2);
    }
}

void gptoss_tile_put_row(const uint8_t *codes, const uint8_t *scales, int64_t num_columns,
                         bool is_mxfp4, int row, uint8_t *tile, uint8_t *tile_scales) {
    (is_mxfp4 ? put_mxfp4 : put_q8)(codes, scales, num_columns / 32, row % 8, row / 8, tile,
                                    tile_scales);
}

void gptoss_tile_widen_range(const uint8_t *tile_scales, int64_t num_columns,
                             struct gptoss_scale_range *range) {
    for (uint64_t i = 0; i < gptoss_tile_scale_bytes(num_columns, true); ++i) {
        uint8_t scale = tile_scales[i];
        range->least = scale > 0 && scale < range->least ? scale : range->least;
        range->most = scale > range->most ? scale : range->most;
    }
}

bool gptoss_tile_find_shift(struct gptoss_scale_range range, uint32_t *shift_out) {
    *shift_out = range.most - MAX_HALF_EXPONENT;
    return range.most < NAN_SCALE && range.most >= MIN_MOST_SCALE &&
           range.most - range.least <= MAX_SCALE_RANGE;
}

/* ---- what the device does ---- */

/* What invocation 4 g + t has to tell. */
static bool is_as_counted_on(const uint32_t *words, uint32_t lane) {
    uint32_t g = lane / 4, t = lane % 4;
    float half_way = 1 + ((float)lane + 0.5f) / 1024;
    for (uint32_t i = 0; i < 8; ++i)
        if (words[i] != 16 * (g + i / 4 * 8) + 2 * t + i / 2 % 2 * 8 + i % 2 ||
            words[16 + i] != words[i])
            return false;
    for (uint32_t i = 0; i < 4; ++i)
        if (words[8 + i] != 8 * (2 * t + i / 2 * 8 + i % 2) + g ||
            words[12 + i] != 8 * (g + i / 2 * 8) + 2 * t + i % 2)
            return false;
    uint32_t rounded = gptoss_f16_from_float(half_way);
    return words[24] == (rounded | (rounded | 0x8000u) << 16);
}

static enum gptoss_status run_fragments(struct gptoss_vulkan_device *device,
                                        struct gptoss_vulkan_pipelines *pipelines,
                                        struct gptoss_vulkan_queue *queue,
                                        const struct gptoss_vulkan_memory *words,
                                        struct gptoss_error *error) {
    const struct gptoss_fragments_push push = {.result = words->address};
    const struct gptoss_pipeline_key key = {
        GPTOSS_SHADER_fragments,
        {32, GPTOSS_DEVICE_MXFP4_TILES, 32, 0, 0, 0, 0, device->keeps_subnormal_halves, 32}};
    struct gptoss_vulkan_command command;
    memset(&command, 0, sizeof command);
    GPTOSS_TRY(gptoss_vulkan_pipeline(device, pipelines, &key, &command.pipeline, error));
    for (int i = 0; i < 3; ++i)
        command.groups[i] = 1;
    command.push_bytes = sizeof push;
    memcpy(command.push, &push, sizeof push);
    if (gptoss_vulkan_list(queue, &command) != GPTOSS_OK)
        return gptoss_vulkan_list_refused(error);
    GPTOSS_TRY(gptoss_vulkan_start(queue, false, error));
    return gptoss_vulkan_wait(queue, NULL, NULL, error);
}

enum gptoss_status gptoss_vulkan_find_tiles(struct gptoss_vulkan_device *device,
                                            struct gptoss_vulkan_pipelines *pipelines,
                                            struct gptoss_vulkan_queue *queue, bool *has_tiles_out,
                                            struct gptoss_error *error) {
    struct gptoss_vulkan_memory words;
    const uint64_t lane_bytes = GPTOSS_FRAGMENT_WORDS * sizeof(uint32_t);
    GPTOSS_TRY(gptoss_vulkan_memory_create(device, GPTOSS_VULKAN_READBACK, 32 * lane_bytes,
                                           "the order of matrices", &words, error));
    enum gptoss_status status = run_fragments(device, pipelines, queue, &words, error);
    *has_tiles_out = status == GPTOSS_OK;
    for (uint32_t lane = 0; lane < 32 && *has_tiles_out; ++lane)
        *has_tiles_out =
            is_as_counted_on((const uint32_t *)words.host + lane * GPTOSS_FRAGMENT_WORDS, lane);
    gptoss_vulkan_memory_release(device, &words);
    return status;
}
