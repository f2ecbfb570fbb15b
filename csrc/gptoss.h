/* gptoss: run OpenAI's gpt-oss models. The whole public C API.
 *
 * Conventions. Fallible functions return enum gptoss_status and take a nullable struct gptoss_error
 * that receives the sentence and its parts. Results come last, as *_out; on failure handles are
 * NULL and other outs are untouched. Objects are made by create/open, shared by retain, given up by
 * release, which accepts NULL. A model is immutable and may be shared by threads; a generator
 * belongs to one thread at a time. Callbacks run on the calling thread only.
 */
#ifndef GPTOSS_H
#define GPTOSS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define GPTOSS_VERSION "0.1.0"
#define GPTOSS_MAX_DIMS 4
#define GPTOSS_MAX_LAYERS 1024

enum gptoss_status {
    GPTOSS_OK = 0,
    GPTOSS_ERROR_ARGUMENT = 1, /* the caller's value is out of its range */
    GPTOSS_ERROR_MEMORY = 2,   /* an allocation or a reservation of address space was refused */
    GPTOSS_ERROR_IO = 3,       /* a file could not be opened or read; system_errno says why */
    GPTOSS_ERROR_FORMAT = 4,   /* a file's contents are not what the format demands */
    GPTOSS_ERROR_UNSUPPORTED =
        5,                    /* understood, but not available in this build or on this machine */
    GPTOSS_ERROR_CONTEXT = 6, /* the context is full; limit and requested hold both counts */
    GPTOSS_ERROR_INTERRUPTED = 7, /* a poll callback asked to stop */
    GPTOSS_ERROR_NUMERIC = 8,     /* logits are NaN */
    GPTOSS_ERROR_STATE = 9,       /* not possible now, as logits before the first step */
    GPTOSS_ERROR_DEVICE = 10      /* a GPU or its driver failed */
};

/* One failure. Strings are empty and numbers -1 where they say nothing. */
struct gptoss_error {
    enum gptoss_status status;
    int system_errno;
    int64_t offset;    /* byte offset in the file */
    int64_t limit;     /* GPTOSS_ERROR_CONTEXT: positions there are */
    int64_t requested; /* GPTOSS_ERROR_CONTEXT: positions asked for */
    char message[1024];
    char file[512];
    char tensor[192];
    char expected[160];
    char found[160];
};

/* Storage formats of tensors. Values are part of the ABI and only ever appended. */
enum gptoss_dtype {
    GPTOSS_DTYPE_F32 = 0,
    GPTOSS_DTYPE_F16 = 1,
    GPTOSS_DTYPE_BF16 = 2,
    GPTOSS_DTYPE_F64 = 3,
    GPTOSS_DTYPE_U8 = 4,
    GPTOSS_DTYPE_I8 = 5,
    GPTOSS_DTYPE_U16 = 6,
    GPTOSS_DTYPE_I16 = 7,
    GPTOSS_DTYPE_U32 = 8,
    GPTOSS_DTYPE_I32 = 9,
    GPTOSS_DTYPE_U64 = 10,
    GPTOSS_DTYPE_I64 = 11,
    GPTOSS_DTYPE_BOOL = 12,
    GPTOSS_DTYPE_F8_E4M3 = 13,
    GPTOSS_DTYPE_F8_E5M2 = 14,
    GPTOSS_DTYPE_MXFP4 =
        15, /* codes in 32-element blocks and a separate plane of E8M0 scales; no file dtype */
    /* Blocks of 32 elements, as GGUF files hold them. */
    GPTOSS_DTYPE_Q8_0 = 16,       /* 34 bytes: an f16 scale, 32 int8 codes */
    GPTOSS_DTYPE_MXFP4_GGUF = 17, /* 17 bytes: an E8M0 scale, 16 bytes of codes; byte j holds
                                     element j in its low nibble, element j + 16 in its high one */
    GPTOSS_DTYPE_Q4_0 = 18, /* these and the next: docs/numerics.md, numeric/block_formats.h */
    GPTOSS_DTYPE_Q4_1 = 19,
    GPTOSS_DTYPE_Q5_0 = 20,
    GPTOSS_DTYPE_Q5_1 = 21,
    /* Blocks of 256. */
    GPTOSS_DTYPE_Q2_K = 22,
    GPTOSS_DTYPE_Q3_K = 23,
    GPTOSS_DTYPE_Q4_K = 24,
    GPTOSS_DTYPE_Q5_K = 25,
    GPTOSS_DTYPE_Q6_K = 26,
    /* As MXFP4: codes in 32-element blocks, of 24 and 32 bytes, and a plane of E8M0 scales. */
    GPTOSS_DTYPE_MXFP6_E2M3 = 27,
    GPTOSS_DTYPE_MXFP6_E3M2 = 28,
    GPTOSS_DTYPE_MXFP8_E4M3 = 29,
    GPTOSS_DTYPE_MXFP8_E5M2 = 30
};

enum gptoss_rope_scaling {
    GPTOSS_ROPE_PLAIN = 0,
    GPTOSS_ROPE_YARN = 1,
    GPTOSS_ROPE_NONE = 2,    /* no rotation: positions are learned */
    GPTOSS_ROPE_LINEAR = 3,  /* every frequency divided by rope_factor */
    GPTOSS_ROPE_LLAMA3 = 4,  /* low frequencies divided by rope_factor */
    GPTOSS_ROPE_DIVISORS = 5 /* every frequency divided by rope_factor and a number of its own, from
                                the tensor rope_freqs.weight */
};

/* What a family has no use for is 0 or false. */
struct gptoss_config {
    char architecture[32]; /* "gpt_oss", "llama" or "gpt2" */
    int32_t num_layers, hidden_size, intermediate_size, vocab_size;
    int32_t num_heads, num_kv_heads, head_dim;
    int32_t num_experts, experts_per_token;
    int32_t sliding_window; /* keys a sliding layer sees, the current one included */
    int32_t max_positions;
    bool attention_bias, mlp_bias, tied_embeddings;
    float rms_norm_eps, layer_norm_eps, swiglu_limit, swiglu_alpha;
    enum gptoss_rope_scaling rope_scaling;
    double rope_theta, rope_factor, rope_beta_fast, rope_beta_slow;
    double rope_attention_factor; /* multiplies cosine and sine */
    int32_t rope_original_positions;
    bool rope_truncate; /* floor and ceil the YaRN correction range */
    double rope_low_frequency_factor, rope_high_frequency_factor; /* LLAMA3 */
    bool rope_neighbours; /* elements 2 i and 2 i + 1 of a head turn together, not i and i +
                             head_dim / 2 */
    uint8_t layer_is_sliding[GPTOSS_MAX_LAYERS];
};

/* One tensor of a checkpoint, in place in its file. Owned by the model. Row-major. Of a block
 * format shape counts elements; num_bytes and data are the blocks'. */
struct gptoss_tensor {
    const char *name;
    enum gptoss_dtype dtype;
    /* dtype, but of NAME_blocks, the codes of weights whose scales are NAME_scales, their format:
     * MXFP4, MXFP8_E4M3, ... as the configuration has it. */
    enum gptoss_dtype weight_dtype;
    int32_t num_dims;
    int64_t shape[GPTOSS_MAX_DIMS];
    const void *data;
    uint64_t num_bytes;
    const char *file;
    uint64_t file_offset;
    const char *format; /* as the file calls the format: "BF16", "Q4_K" */
    bool is_opaque;     /* only in lists of checkpoints: a format that is not read. dtype says
                           nothing; num_bytes is 0 if not even its size is known */
};

/* Types of metadata, by their numbers in GGUF files. */
enum gptoss_gguf_type {
    GPTOSS_GGUF_UINT8 = 0,
    GPTOSS_GGUF_INT8 = 1,
    GPTOSS_GGUF_UINT16 = 2,
    GPTOSS_GGUF_INT16 = 3,
    GPTOSS_GGUF_UINT32 = 4,
    GPTOSS_GGUF_INT32 = 5,
    GPTOSS_GGUF_FLOAT32 = 6,
    GPTOSS_GGUF_BOOL = 7,
    GPTOSS_GGUF_STRING = 8,
    GPTOSS_GGUF_ARRAY = 9,
    GPTOSS_GGUF_UINT64 = 10,
    GPTOSS_GGUF_INT64 = 11,
    GPTOSS_GGUF_FLOAT64 = 12
};

/* One metadata value, in place in its file: little-endian elements one after another, unaligned; a
 * string is a u64 length and that many bytes. Whole and checked, but text may be any bytes. */
struct gptoss_gguf_value {
    const char *key;
    enum gptoss_gguf_type type; /* of an array: of its elements, never ARRAY */
    bool is_array;
    uint64_t num_elements; /* 1 unless an array */
    const uint8_t *data;
    uint64_t num_bytes;
    uint64_t file_offset;
};

/* Called now and then from long work, on the calling thread, with the work done and the whole of it
 * (rows, or bytes for verification). Nonzero asks to stop; the call then returns
 * GPTOSS_ERROR_INTERRUPTED. It must not start work on the same model, which waits for its turn. */
typedef int (*gptoss_poll_fn)(void *user, uint64_t done, uint64_t total);

const char *gptoss_version(void);
const char *gptoss_status_name(enum gptoss_status status);
const char *gptoss_dtype_name(enum gptoss_dtype dtype);
/* Bytes of one element; 0 for block formats. */
size_t gptoss_dtype_bytes(enum gptoss_dtype dtype);
/* Frees memory that a function handed over to its caller. */
void gptoss_free(void *memory);

/* Test hook: the n-th allocation from now fails (n >= 1), once; 0 switches it off. Returns how many
 * were counted since the last call. Not for use while other threads allocate. */
uint64_t gptoss_allocator_fail_at(uint64_t n);
/* Test hook: the n-th time from now that work is given to a GPU or awaited (n >= 1), the GPU is
 * lost to its model; 0 switches it off. Returns how many times were counted since the last call. */
uint64_t gptoss_vulkan_lose_at(uint64_t n);

/* ---- what this machine has ---- */

/* Compiled instruction-set levels, best last ("scalar", "scalar_fma", "avx2", "avx512";
 * "scalar" alone on other architectures than x86-64). */
size_t gptoss_num_isas(void);
const char *gptoss_isa_name(size_t index);
bool gptoss_isa_available(size_t index);
/* The same for precision "bf16" ("avx512_bf16", "amx"; none on other architectures). */
size_t gptoss_num_bf16_isas(void);
const char *gptoss_bf16_isa_name(size_t index);
bool gptoss_bf16_isa_available(size_t index);
/* Whether the processor and the operating system have a feature ("fma", "avx2", "avx512f", "f16c",
 * ...), by index. */
size_t gptoss_num_cpu_features(void);
const char *gptoss_cpu_feature(size_t index, bool *available_out);
/* Processors this process may use now: affinity mask and cgroup quota. */
int gptoss_usable_cpus(void);
/* Physical cores among them: what a model takes by default. The threads of a core count once, the
 * slow cores of a hybrid processor not at all. */
int gptoss_usable_cores(void);

struct gptoss_vulkan_device_info {
    char name[256];
    const char *kind;      /* "discrete", "integrated", "virtual", "software" or "other" */
    uint64_t memory_bytes; /* of its own largest memory */
};
/* The first max_devices Vulkan devices; num_out: how many there are written. Their order is that of
 * the indices in device names. GPTOSS_ERROR_UNSUPPORTED: no loader, or no driver. */
enum gptoss_status gptoss_list_vulkan_devices(struct gptoss_vulkan_device_info *devices,
                                              size_t max_devices, size_t *num_out,
                                              struct gptoss_error *error);

/* ---- checkpoint: the files of a model, without the model ---- */

struct gptoss_checkpoint;
/* Maps the files and reads their headers: of a model of any architecture, its tensors in any
 * format. path: as gptoss_model_open takes it, but no config.json is needed. */
enum gptoss_status gptoss_checkpoint_list(const char *path,
                                          struct gptoss_checkpoint **checkpoint_out,
                                          struct gptoss_error *error);
void gptoss_checkpoint_release(struct gptoss_checkpoint *checkpoint);
/* The version of GGUF; 0 of safetensors. */
uint32_t gptoss_checkpoint_gguf_version(const struct gptoss_checkpoint *checkpoint);
/* The files with weights, parts of a split one in order. */
size_t gptoss_checkpoint_num_files(const struct gptoss_checkpoint *checkpoint);
const char *gptoss_checkpoint_file(const struct gptoss_checkpoint *checkpoint, size_t index,
                                   uint64_t *num_bytes_out);
/* Tensors in the order of their names. */
size_t gptoss_checkpoint_num_tensors(const struct gptoss_checkpoint *checkpoint);
const struct gptoss_tensor *gptoss_checkpoint_tensor(const struct gptoss_checkpoint *checkpoint,
                                                     size_t index);
/* Metadata of a GGUF file, of a split one of its first part, in the order of the keys; none of
 * safetensors. Owned by the checkpoint. */
size_t gptoss_checkpoint_num_values(const struct gptoss_checkpoint *checkpoint);
const struct gptoss_gguf_value *gptoss_checkpoint_value(const struct gptoss_checkpoint *checkpoint,
                                                        size_t index);

/* ---- model ---- */

struct gptoss_model;
/* A low-rank adapter (LoRA) in PEFT's form. path: a .safetensors file with the pairs
 * "base_model.model.MODULE.lora_A.weight", [rank][inputs], and "...lora_B.weight",
 * [outputs][rank], F32, F16 or BF16. The product of a module's weight and x gets factor * B (A x)
 * added. Other tensors of the file are not looked at. */
struct gptoss_adapter {
    const char *path;
    size_t num_modules;
    const char *const *modules; /* "model.layers.3.self_attn.q_proj", ... */
    const float *factors;       /* [num_modules] */
};
struct gptoss_model_options {
    /* NULL or "cpu"; "vulkan", or "vulkan:" and an index or part of a name; or several of these,
     * separated by commas, which share the layers: "cpu", the last, gets what does not fit. */
    const char *device;
    /* Bytes of the GPUs' memory that the model may take, one number for each or for all; what does
     * not fit stays on the CPU. NULL, 0: all there is. */
    const uint64_t *gpu_memory;
    size_t num_gpu_memory;
    const char *isa;       /* NULL: the best available for the precision */
    const char *precision; /* NULL: the device's own; "fp32"; on a CPU "bf16", on a GPU "fp16": see
                              docs/numerics.md */
    int num_threads;       /* 0: gptoss_usable_cores() */
    bool read_files;       /* read the weights into memory instead of mapping the files */
    bool profile;          /* count and time the operations, for gptoss_model_profile_entry */
    bool profile_counts;   /* with profile: on a GPU count only, since timing slows it down */
    const struct gptoss_adapter *adapters; /* [num_adapters], added in this order */
    size_t num_adapters;
    gptoss_poll_fn poll; /* only while reading files or loading a device: bytes */
    void *poll_user;
};

/* Opens a directory (Hugging Face or original layout, or one with a single .gguf file or the parts
 * of one), one .safetensors file with config.json beside it, or one .gguf file, which may be any
 * part of a split one. */
enum gptoss_status gptoss_model_open(const char *path, const struct gptoss_model_options *options,
                                     struct gptoss_model **model_out, struct gptoss_error *error);
struct gptoss_model *gptoss_model_retain(struct gptoss_model *model);
void gptoss_model_release(struct gptoss_model *model);
const struct gptoss_config *gptoss_model_config(const struct gptoss_model *model);
/* What a device has of a model. */
struct gptoss_share {
    const char *device; /* "cpu", or the name of the GPU */
    const char *holds; /* "the whole model", or what of it, for people: "layers 0-5, unembedding" */
    uint64_t weight_bytes; /* of weights on the GPU; 0 of a CPU, which uses the files' */
    /* What was reserved for keys and values and for activations when the weights were placed. */
    uint64_t cache_bytes, activation_bytes;
};
size_t gptoss_model_num_shares(const struct gptoss_model *model);
void gptoss_model_share(const struct gptoss_model *model, size_t index,
                        struct gptoss_share *share_out);

/* "cpu", or the name of the GPU; of several, their names joined by " + ". */
const char *gptoss_model_device(const struct gptoss_model *model);
/* "vulkan" on a GPU. */
const char *gptoss_model_isa(const struct gptoss_model *model);
const char *gptoss_model_precision(const struct gptoss_model *model);
int gptoss_model_num_threads(const struct gptoss_model *model);

size_t gptoss_model_num_tensors(const struct gptoss_model *model);
const struct gptoss_tensor *gptoss_model_tensor(const struct gptoss_model *model, size_t index);
/* NULL if there is none of that name. */
const struct gptoss_tensor *gptoss_model_find_tensor(const struct gptoss_model *model,
                                                     const char *name);

/* The files; they belong to the model. */
const struct gptoss_checkpoint *gptoss_model_checkpoint(const struct gptoss_model *model);

/* Reads every weight once, of block formats the scales: MX scales of 0xFF, NaN and infinite values
 * fail with GPTOSS_ERROR_FORMAT. */
enum gptoss_status gptoss_model_verify(struct gptoss_model *model, gptoss_poll_fn poll, void *user,
                                       struct gptoss_error *error);

/* Decodes one expert to float32, [out][in] row-major with gate and up apart. Any out may be NULL.
 * gate, up: [intermediate_size][hidden_size]; down: [hidden_size][intermediate_size]; biases: one
 * per row. */
struct gptoss_expert_out {
    float *gate, *up, *down, *gate_bias, *up_bias, *down_bias;
};
enum gptoss_status gptoss_model_decode_expert(const struct gptoss_model *model, int32_t layer,
                                              int32_t expert, const struct gptoss_expert_out *out,
                                              struct gptoss_error *error);

/* Bytes by category: file bytes mapped, heap held by the model (tables, scratch, activations), and
 * on GPUs all there is, generators' caches included. */
struct gptoss_model_memory {
    uint64_t mapped_bytes, read_bytes, heap_bytes, device_bytes;
};
void gptoss_model_memory(const struct gptoss_model *model, struct gptoss_model_memory *memory_out);

/* ---- profile: what the passes of a model opened with `profile` spent, by operation ---- */

struct gptoss_profile_entry {
    const char *name; /* as in backend.h; the last entry, "pass", is the time of whole passes */
    uint64_t num_calls, nanoseconds;
    uint64_t num_rows;     /* tokens, summed over the calls */
    uint64_t weight_bytes; /* of weights: every tensor once a call, of experts those chosen */
    uint64_t kv_bytes;     /* of keys and values: read once a call by attention, or stored */
    uint64_t num_flops;    /* of matrix products and attention, two a multiply-add */
};
/* 0 without `profile`. */
size_t gptoss_model_num_profile_entries(const struct gptoss_model *model);
/* Sums since opening or reset. May be called during a pass of another thread, between whose
 * operations it then falls. */
void gptoss_model_profile_entry(const struct gptoss_model *model, size_t index,
                                struct gptoss_profile_entry *entry_out);
void gptoss_model_reset_profile(struct gptoss_model *model);

/* ---- taps: the named activations a generator can keep ---- */

struct gptoss_tap {
    char name[64];           /* "layers.3.router_logits" */
    enum gptoss_dtype dtype; /* F32 or I32 */
    int32_t num_dims;        /* without the leading row dimension */
    int64_t shape[GPTOSS_MAX_DIMS - 1];
};
size_t gptoss_model_num_taps(const struct gptoss_model *model);
void gptoss_model_tap(const struct gptoss_model *model, size_t index, struct gptoss_tap *tap_out);

/* ---- generator: one sequence ---- */

struct gptoss_generator;
struct gptoss_generator_options {
    int64_t max_context;        /* 0: the model's max_positions */
    enum gptoss_dtype kv_dtype; /* GPTOSS_DTYPE_F16 or GPTOSS_DTYPE_F32 */
    int32_t block_size;         /* rows of a prefill block; 0: 2048 */
};
enum gptoss_status gptoss_generator_create(struct gptoss_model *model,
                                           const struct gptoss_generator_options *options,
                                           struct gptoss_generator **generator_out,
                                           struct gptoss_error *error);
struct gptoss_generator *gptoss_generator_retain(struct gptoss_generator *generator);
void gptoss_generator_release(struct gptoss_generator *generator);
struct gptoss_model *gptoss_generator_model(const struct gptoss_generator *generator);

/* Feeds tokens and leaves the last one's logits. all_logits_out, if not NULL, receives
 * [num_tokens][vocab_size]. After GPTOSS_ERROR_INTERRUPTED the generator stands after its last
 * completed block. */
enum gptoss_status gptoss_generator_prefill(struct gptoss_generator *generator,
                                            const int32_t *tokens, size_t num_tokens,
                                            float *all_logits_out, gptoss_poll_fn poll, void *user,
                                            struct gptoss_error *error);
/* [vocab_size], one address for the generator's life. */
const float *gptoss_generator_logits(const struct gptoss_generator *generator);
/* Whether the logits belong to the current position. */
bool gptoss_generator_has_logits(const struct gptoss_generator *generator);
int64_t gptoss_generator_position(const struct gptoss_generator *generator);
int64_t gptoss_generator_max_context(const struct gptoss_generator *generator);
enum gptoss_dtype gptoss_generator_kv_dtype(const struct gptoss_generator *generator);
/* The tokens at positions 0 .. position-1; valid until the next call that changes the generator. */
const int32_t *gptoss_generator_tokens(const struct gptoss_generator *generator);

/* Keys and values of a layer. Element (head, position, d) lies at data + head * head_stride_bytes +
 * position * row_bytes + d * element; only positions first_position .. end_position-1 are held.
 * Addresses never move. */
struct gptoss_kv_view {
    const void *keys, *values;
    int64_t first_position, end_position;
    uint64_t head_stride_bytes, row_bytes;
};
enum gptoss_status gptoss_generator_kv(const struct gptoss_generator *generator, int32_t layer,
                                       struct gptoss_kv_view *view_out, struct gptoss_error *error);
/* Bytes of cache address space reserved and of pages holding rows. */
void gptoss_generator_memory(const struct gptoss_generator *generator, uint64_t *reserved_bytes_out,
                             uint64_t *held_bytes_out);

/* Back to an earlier position; rows that were given up are computed again (same bits), hence the
 * poll. */
enum gptoss_status gptoss_generator_rewind(struct gptoss_generator *generator, int64_t position,
                                           gptoss_poll_fn poll, void *user,
                                           struct gptoss_error *error);
void gptoss_generator_reset(struct gptoss_generator *generator);
/* An independent copy: tokens, cache, logits; not the captured taps. */
enum gptoss_status gptoss_generator_fork(const struct gptoss_generator *generator,
                                         struct gptoss_generator **generator_out,
                                         struct gptoss_error *error);

/* Feeds num_tokens_each[i] tokens to generators[i], all of one model and each given once; tokens
 * holds those of generator 0, then those of generator 1, and so on. All run as one table of rows,
 * to the bits that each alone would give, and every generator is left with its last logits. Nothing
 * happens before all arguments are checked; errors name the generator by its index. The table is
 * cut into blocks of bounded size, each of which counts for all its generators or none, so after
 * GPTOSS_ERROR_INTERRUPTED some may stand at their end, one within its tokens, and the rest where
 * they stood. */
enum gptoss_status gptoss_forward(struct gptoss_generator *const *generators, size_t num_generators,
                                  const int32_t *tokens, const size_t *num_tokens_each,
                                  gptoss_poll_fn poll, void *user, struct gptoss_error *error);

/* What scoring tells of a row, the token it is to predict being its target. Arrays of [num_tokens],
 * each of which may be NULL; rows that are not scored are left alone. In nats; defined to the bit
 * by docs/numerics.md. */
struct gptoss_scores {
    double *logprobs;  /* of the target */
    int32_t *ranks;    /* tokens before it: of higher logit, or of its logit and lower id */
    double *entropies; /* of the distribution */
    /* Only with a reference: */
    double *reference_logprobs; /* of the target by the reference */
    double *divergences;        /* Kullback-Leibler, of the reference from the generator: the mean
                                   of log p_reference - log p under p_reference */
    uint8_t *same_top;          /* whether both find the same token likeliest */
};
/* Feeds tokens, as prefill does, and scores them in memory that does not depend on their number.
 * targets: the token that each row is to predict, -1 for rows that are not scored; NULL: of each
 * the next token, of the last none. reference: NULL, or a generator of another model with the same
 * vocabulary, which is fed the same tokens. GPTOSS_ERROR_NUMERIC if logits of a scored row are NaN
 * or all -infinity. After GPTOSS_ERROR_INTERRUPTED generators stand after their last completed
 * block. */
enum gptoss_status gptoss_generator_score(struct gptoss_generator *generator,
                                          struct gptoss_generator *reference, const int32_t *tokens,
                                          size_t num_tokens, const int32_t *targets,
                                          const struct gptoss_scores *scores_out,
                                          gptoss_poll_fn poll, void *user,
                                          struct gptoss_error *error);

/* Computes the rows of tokens that may come next in one pass, and changes nothing else: feeding the
 * first of them by gptoss_generator_prefill, one token a call, then takes its row at no cost, and
 * so on, as long as the guess is right. Any other change of the generator forgets the rest. */
enum gptoss_status gptoss_generator_look_ahead(struct gptoss_generator *generator,
                                               const int32_t *tokens, size_t num_tokens,
                                               gptoss_poll_fn poll, void *user,
                                               struct gptoss_error *error);
struct gptoss_sampling;
/* Whether the model's device can do what gptoss_generator_run_ahead asks for. */
bool gptoss_generator_runs_ahead(const struct gptoss_generator *generator);
/* Computes the row of a token, and those of num_tokens - 1 more that are guessed to be drawn with
 * sampling's temperature, min_p and seed and nothing else of it; fewer if the context ends before
 * or the device takes fewer at once. What follows is as after gptoss_generator_look_ahead. Draws
 * from rows while the device computes the next. */
enum gptoss_status gptoss_generator_run_ahead(struct gptoss_generator *generator, int32_t token,
                                              int32_t num_tokens,
                                              const struct gptoss_sampling *sampling,
                                              gptoss_poll_fn poll, void *user,
                                              struct gptoss_error *error);
/* The tokens that the last gptoss_generator_run_ahead drew from its rows, up to the first that was
 * not guessed right, included, and their log-probabilities; valid until the next call that changes
 * the generator. */
size_t gptoss_generator_drawn_ahead(const struct gptoss_generator *generator,
                                    const int32_t **tokens_out, const float **logprobs_out);
/* How many tokens are looked ahead at now, and which; valid until the next call that changes the
 * generator. */
size_t gptoss_generator_ahead(const struct gptoss_generator *generator, const int32_t **tokens_out);

/* Which taps to keep from the next call on: mask[gptoss_model_num_taps], or NULL for none. */
enum gptoss_status gptoss_generator_capture(struct gptoss_generator *generator, const uint8_t *mask,
                                            struct gptoss_error *error);
/* Hands over what the last call kept of a tap: [rows_out] rows in memory for gptoss_free, or NULL.
 */
void *gptoss_generator_take_tap(struct gptoss_generator *generator, size_t tap, int64_t *rows_out);

/* ---- sampling ---- */

struct gptoss_sampling {
    float temperature;                                             /* 0: greedy */
    int32_t top_k;                                                 /* 0: off */
    float top_p;                                                   /* 1: off */
    float min_p;                                                   /* 0: off */
    float repetition_penalty, frequency_penalty, presence_penalty; /* 1, 0, 0: off */
    uint64_t seed;
    const int32_t *bias_tokens; /* logit bias, num_biases pairs */
    const float *bias_values;
    size_t num_biases;
};
/* Draws a token for the position after num_history tokens: a function of logits, options, history,
 * seed and num_history alone. Steps in order: bias, penalties, temperature, top-k, top-p, min-p,
 * draw. logprob_out (nullable): log-softmax of the unchanged logits at the token.
 * GPTOSS_ERROR_NUMERIC if any logit is NaN. */
enum gptoss_status gptoss_sample(const float *logits, size_t vocab_size,
                                 const struct gptoss_sampling *sampling, const int32_t *history,
                                 size_t num_history, int32_t *token_out, float *logprob_out,
                                 struct gptoss_error *error);
/* The k tokens of highest log-probability, ties by lowest id. */
enum gptoss_status gptoss_top_logprobs(const float *logits, size_t vocab_size, size_t k,
                                       int32_t *tokens_out, float *logprobs_out,
                                       struct gptoss_error *error);

#ifdef __cplusplus
}
#endif

#endif
