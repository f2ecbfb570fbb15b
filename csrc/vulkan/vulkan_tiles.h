/* Weights in tiles, as push_constants.h describes: the order of cooperative matrices in registers.
 */
#ifndef GPTOSS_VULKAN_VULKAN_TILES_H
#define GPTOSS_VULKAN_VULKAN_TILES_H

#include "vulkan/vulkan_command.h"

#define GPTOSS_MAX_TILE_COLUMNS 16384 /* what shared memory has room for */

/* Bytes of codes and of scales of 16 rows. */
uint64_t gptoss_tile_bytes(int64_t num_columns, bool is_mxfp4);
uint64_t gptoss_tile_scale_bytes(int64_t num_columns, bool is_mxfp4);
/* Puts row 0 to 15 into a tile: codes and scales of its blocks as in the layouts in rows. Scales of
 * MXFP4 whose codes are all zero become 0, but for NaN. */
void gptoss_tile_put_row(const uint8_t *codes, const uint8_t *scales, int64_t num_columns,
                         bool is_mxfp4, int row, uint8_t *tile, uint8_t *tile_scales);
/* Widens a range of scales of MXFP4 by those of a tile, 0 left out. */
struct gptoss_scale_range {
    uint8_t least, most;
};
void gptoss_tile_widen_range(const uint8_t *tile_scales, int64_t num_columns,
                             struct gptoss_scale_range *range);
/* Whether halves can have the scales in them, and the shift that this takes (tiles.glsl). Exact for
 * scales down to 2^-24 of the largest, of which the smallest code is the smallest half; what is
 * smaller is rounded to multiples of 2^-25 of the largest scale. */
bool gptoss_tile_find_shift(struct gptoss_scale_range range, uint32_t *shift_out);
/* Asks the device whether its cooperative matrices have that order, and rounds as the shaders count
 * on. Only for those that have_narrow_matrices. */
enum gptoss_status gptoss_vulkan_find_tiles(struct gptoss_vulkan_device *device,
                                            struct gptoss_vulkan_pipelines *pipelines,
                                            struct gptoss_vulkan_queue *queue, bool *has_tiles_out,
                                            struct gptoss_error *error);

#endif
