/* What config.json says of weights whose codes and scales are tensors of their own, NAME_blocks and
 * NAME_scales: their formats.
 *
 *     "quantization_config": {"quant_method": "mxfp4"}          all are MXFP4, as gpt-oss has them
 *     "quantization_config": {"quant_method": "mx", "format": "MXFP8_E4M3",
 *                             "formats": {"lm_head.weight": "MXFP6_E2M3"}}
 *
 * formats names exceptions, by NAME, and may be absent. */
#ifndef GPTOSS_CHECKPOINT_QUANTIZATION_H
#define GPTOSS_CHECKPOINT_QUANTIZATION_H

#include "checkpoint/config_reader.h"

struct gptoss_quantization {
    enum gptoss_dtype format;
    cJSON *formats; /* NAME: format, every one sound; NULL: no exceptions */
};

/* MXFP4 where there is no such key. formats moves out of the reader's object; what is held, also on
 * failure, goes with free. */
void gptoss_quantization_read(const struct gptoss_config_reader *reader,
                              struct gptoss_quantization *out);
/* Sets weight_dtype of every NAME_blocks and NAME.blocks. tensors: sorted by name. config_path: for
 * messages. GPTOSS_ERROR_FORMAT for an exception without blocks. */
enum gptoss_status gptoss_quantization_apply(const struct gptoss_quantization *quantization,
                                             const char *config_path, struct gptoss_tensor *tensors,
                                             size_t num_tensors, struct gptoss_error *error);
void gptoss_quantization_free(struct gptoss_quantization *quantization);

#endif
