/* Private entry points of _core for tests: the attention and elementwise kernels of any instruction
 * set, the math functions and the rotary tables. Arrays are writable buffers of contiguous float32
 * unless said otherwise; results go to those of the caller's that come last. */
#include "cpu/bf16_units.h"
#include "engine/rope.h"
#include "numeric/double_math.h"
#include "numeric/float_math.h"
#include "platform/allocator.h"
#include "python/binding.h"

enum { MAX_BUFFERS = 8 };

/* The arrays of one call, released together. */
struct arrays {
    Py_buffer buffers[MAX_BUFFERS];
    int count;
};

static void release(struct arrays *arrays) {
    while (arrays->count > 0)
        PyBuffer_Release(&arrays->buffers[--arrays->count]);
}

/* The buffers of a tuple's items from `first` on. */
static bool acquire(PyObject *tuple, Py_ssize_t first, struct arrays *arrays) {
    for (Py_ssize_t i = first; i < PyTuple_Size(tuple) && arrays->count < MAX_BUFFERS; ++i) {
        Py_buffer *buffer = &arrays->buffers[arrays->count];
        if (PyObject_GetBuffer(PyTuple_GetItem(tuple, i), buffer, PyBUF_WRITABLE) != 0) {
            release(arrays);
            return false;
        }
        arrays->count++;
    }
    return true;
}

static int64_t num_floats(const struct arrays *arrays, int index) {
    return arrays->buffers[index].len / (int64_t)sizeof(float);
}

/* Whether the arrays have these numbers of bytes; an exception if not. */
static bool have_bytes(const struct arrays *arrays, int count, const int64_t *num_bytes) {
    bool agrees = arrays->count == count;
    for (int i = 0; agrees && i < count; ++i)
        agrees = arrays->buffers[i].len == num_bytes[i];
    if (!agrees)
        PyErr_SetString(PyExc_ValueError, "the arrays' number or sizes do not belong together");
    return agrees;
}

/* The kernels of an instruction set that this machine has; an exception if not. */
static const struct gptoss_kernels *select_kernels(const char *isa) {
    const struct gptoss_kernels *kernels = gptoss_kernels_select(isa);
    if (kernels == NULL)
        PyErr_Format(PyExc_ValueError, "no kernels for the instruction set %s", isa);
    return kernels;
}

static PyObject *finish(struct arrays *arrays, bool is_done) {
    release(arrays);
    return is_done ? Py_NewRef(Py_None) : NULL;
}

/* ---- attention over a tile ---- */

static bool run_attention_tile(gptoss_attention_tile_fn *attend, int head_dim, int64_t row_bytes,
                               float scale, struct arrays *arrays) {
    Py_buffer *b = arrays->buffers;
    int64_t num_queries = arrays->count < 4 ? 0 : b[3].len / (int64_t)sizeof(int32_t);
    int64_t line = num_queries * 4, matrix = line * head_dim;
    int64_t num_bytes[8] = {b[0].len, b[1].len, matrix, line, line, line, line, matrix};
    if (!have_bytes(arrays, 8, num_bytes))
        return false;
    struct gptoss_attention_tile tile = {
        .keys = b[0].buf,
        .values = b[1].buf,
        .row_bytes = row_bytes,
        .head_dim = head_dim,
        .num_queries = (int32_t)num_queries,
        .scale = scale,
        .queries = b[2].buf,
        .query_stride = head_dim,
        .first_key = b[3].buf,
        .end_key = b[4].buf,
        .maximum = b[5].buf,
        .sum = b[6].buf,
        .value = b[7].buf,
    };
    float *scratch = gptoss_allocate((size_t)GPTOSS_ATTENTION_SCRATCH(head_dim), sizeof *scratch);
    if (scratch == NULL) {
        PyErr_NoMemory();
        return false;
    }
    attend(&tile, scratch);
    gptoss_free(scratch);
    return true;
}

/* kernel_attention_tile(isa, is_f16, head_dim, row_bytes, scale, (keys, values, queries, first_key,
 * end_key, maximum, sum, value)): keys and values hold the rows that queries see, of the tile's 64;
 * first_key, end_key: int32. */
static PyObject *attention_tile(PyObject *module, PyObject *arguments) {
    (void)module;
    const char *isa;
    int is_f16, head_dim;
    Py_ssize_t row_bytes;
    float scale;
    PyObject *tuple;
    if (!PyArg_ParseTuple(arguments, "spinfO!:kernel_attention_tile", &isa, &is_f16, &head_dim,
                          &row_bytes, &scale, &PyTuple_Type, &tuple))
        return NULL;
    struct arrays arrays = {.count = 0};
    const struct gptoss_kernels *kernels = NULL;
    const struct gptoss_bf16_unit *unit = gptoss_bf16_unit_select(isa, &kernels);
    if (unit == NULL)
        kernels = select_kernels(isa);
    if (kernels == NULL || !acquire(tuple, 0, &arrays))
        return NULL;
    bool is_done = run_attention_tile(gptoss_attention_tile_select(kernels, unit, is_f16), head_dim,
                                      row_bytes, scale, &arrays);
    return finish(&arrays, is_done);
}

/* ---- elementwise kernels ---- */

static bool run_elementwise(const struct gptoss_kernels *kernels, const char *operation, float a,
                            float b, struct arrays *arrays) {
    Py_buffer *buffers = arrays->buffers;
    float *x = buffers[0].buf, *y = buffers[1].buf, *z = buffers[2].buf;
    int64_t n = num_floats(arrays, 0), bytes = buffers[0].len, other = buffers[1].len;
    bool is_done = true;
    if (strcmp(operation, "add") == 0) {
        if ((is_done = have_bytes(arrays, 2, (int64_t[]){bytes, bytes})))
            kernels->add(x, y, n);
    } else if (strcmp(operation, "multiply_add") == 0) {
        if ((is_done = have_bytes(arrays, 2, (int64_t[]){bytes, bytes})))
            kernels->multiply_add(x, a, y, n);
    } else if (strcmp(operation, "divide") == 0) {
        if ((is_done = have_bytes(arrays, 2, (int64_t[]){bytes, bytes})))
            kernels->divide(x, a, n, y);
    } else if (strcmp(operation, "convert_f32_f16") == 0) {
        if ((is_done = have_bytes(arrays, 2, (int64_t[]){bytes, bytes / 2})))
            kernels->convert_f32_f16(x, n, buffers[1].buf);
    } else if (strcmp(operation, "swiglu") == 0) {
        if ((is_done = have_bytes(arrays, 2, (int64_t[]){2 * other, other})))
            kernels->swiglu(x, n / 2, a, b, y);
    } else if (strcmp(operation, "rms_norm") == 0) {
        if ((is_done = have_bytes(arrays, 3, (int64_t[]){bytes, bytes, bytes})))
            kernels->rms_norm(x, y, n, a, z);
    } else if (strcmp(operation, "layer_norm") == 0) {
        if ((is_done = have_bytes(arrays, 4, (int64_t[]){bytes, bytes, bytes, bytes})))
            kernels->layer_norm(x, y, z, n, a, buffers[3].buf);
    } else if (strcmp(operation, "silu_multiply") == 0) {
        if ((is_done = have_bytes(arrays, 2, (int64_t[]){bytes, bytes})))
            kernels->silu_multiply(x, y, n);
    } else if (strcmp(operation, "gelu") == 0) {
        if ((is_done = have_bytes(arrays, 2, (int64_t[]){bytes, bytes})))
            kernels->gelu(x, n, y);
    } else if (strcmp(operation, "rope") == 0 || strcmp(operation, "rope_neighbours") == 0) {
        int64_t half = num_floats(arrays, 1), num_heads = half > 0 ? n / (2 * half) : 0;
        if ((is_done = have_bytes(arrays, 3, (int64_t[]){2 * other * num_heads, other, other})))
            (strcmp(operation, "rope") == 0 ? kernels->rope
                                            : kernels->rope_neighbours)(x, y, z, half, num_heads);
    } else if (strcmp(operation, "attention_merge") == 0) {
        if ((is_done = have_bytes(arrays, 2, (int64_t[]){bytes, bytes - 8})))
            kernels->attention_merge(&x[0], &x[1], x + 2, &a, &b, y, 1, n - 2);
    } else {
        PyErr_Format(PyExc_ValueError, "no elementwise kernel %s", operation);
        is_done = false;
    }
    return is_done;
}

/* kernel_elementwise(isa, operation, a, b, *arrays), the scalars 0 where an operation has none:
 *     add (x, y)    multiply_add weight (sum, y)    divide divisor (x, out)
 *     convert_f32_f16 (x, out: uint16)    swiglu limit alpha (gate_up, out)
 *     rms_norm eps (x, gain, out)    layer_norm eps (x, gain, bias, out)
 *     rope, rope_neighbours (x [heads][head_dim], cosine, sine)
 *     silu_multiply (gate, up)    gelu (x, out)
 *     attention_merge tile_maximum tile_sum ((maximum, sum, value ...), tile_value) */
static PyObject *elementwise(PyObject *module, PyObject *arguments) {
    (void)module;
    const char *isa, *operation;
    float a, b;
    struct arrays arrays = {.count = 0};
    PyObject *scalars = PyTuple_GetSlice(arguments, 0, 4);
    bool is_done = scalars != NULL &&
                   PyArg_ParseTuple(scalars, "ssff:kernel_elementwise", &isa, &operation, &a, &b);
    const struct gptoss_kernels *kernels = is_done ? select_kernels(isa) : NULL;
    is_done = kernels != NULL && acquire(arguments, 4, &arrays) &&
              run_elementwise(kernels, operation, a, b, &arrays);
    Py_XDECREF(scalars);
    return finish(&arrays, is_done);
}

/* ---- math ---- */

/* math_expf(x, out) */
static PyObject *math_expf(PyObject *module, PyObject *arguments) {
    (void)module;
    struct arrays arrays = {.count = 0};
    if (!acquire(arguments, 0, &arrays))
        return NULL;
    int64_t bytes = arrays.buffers[0].len;
    bool is_done = have_bytes(&arrays, 2, (int64_t[]){bytes, bytes});
    const float *x = arrays.buffers[0].buf;
    float *out = arrays.buffers[1].buf;
    for (int64_t i = 0; is_done && i < bytes / 4; ++i)
        out[i] = gptoss_expf(x[i]);
    return finish(&arrays, is_done);
}

/* math_exp_log(x, exp_out, log_out): float64 */
static PyObject *math_exp_log(PyObject *module, PyObject *arguments) {
    (void)module;
    struct arrays arrays = {.count = 0};
    if (!acquire(arguments, 0, &arrays))
        return NULL;
    int64_t bytes = arrays.buffers[0].len;
    bool is_done = have_bytes(&arrays, 3, (int64_t[]){bytes, bytes, bytes});
    const double *x = arrays.buffers[0].buf;
    double *exp_out = arrays.buffers[1].buf, *log_out = arrays.buffers[2].buf;
    for (int64_t i = 0; is_done && i < bytes / 8; ++i) {
        exp_out[i] = gptoss_exp(x[i]);
        log_out[i] = gptoss_log(x[i]);
    }
    return finish(&arrays, is_done);
}

/* math_sincos(x, sine_out, cosine_out): float32 to float64 */
static PyObject *math_sincos(PyObject *module, PyObject *arguments) {
    (void)module;
    struct arrays arrays = {.count = 0};
    if (!acquire(arguments, 0, &arrays))
        return NULL;
    int64_t bytes = arrays.buffers[0].len;
    bool is_done = have_bytes(&arrays, 3, (int64_t[]){bytes, 2 * bytes, 2 * bytes});
    const float *x = arrays.buffers[0].buf;
    double *sine = arrays.buffers[1].buf, *cosine = arrays.buffers[2].buf;
    for (int64_t i = 0; is_done && i < bytes / 4; ++i)
        gptoss_sincos(x[i], &sine[i], &cosine[i]);
    return finish(&arrays, is_done);
}

static bool fill_rope_table(const struct gptoss_config *config, int64_t position,
                            struct arrays *arrays) {
    Py_buffer *b = arrays->buffers;
    int64_t bytes = config->head_dim / 2 * 4;
    struct gptoss_rope rope;
    struct gptoss_error error;
    if (!have_bytes(arrays, 3, (int64_t[]){bytes, bytes, bytes}))
        return false;
    if (gptoss_rope_init(&rope, config, NULL, &error) != GPTOSS_OK) {
        gptoss_python_raise(&error);
        return false;
    }
    memcpy(b[0].buf, rope.inverse_frequencies, (size_t)bytes);
    gptoss_rope_fill(&rope, position, b[1].buf, b[2].buf);
    gptoss_rope_clear(&rope);
    return true;
}

/* rope_table(head_dim, theta, yarn, position, (inverse_out, cosine_out, sine_out)): yarn is () or
 * (factor, beta_fast, beta_slow, original_positions, attention_factor, truncate). */
static PyObject *rope_table(PyObject *module, PyObject *arguments) {
    (void)module;
    struct gptoss_config config = {.rope_scaling = GPTOSS_ROPE_PLAIN};
    PyObject *yarn, *tuple;
    long long position;
    int truncate = 0;
    struct arrays arrays = {.count = 0};
    if (!PyArg_ParseTuple(arguments, "idO!LO!:rope_table", &config.head_dim, &config.rope_theta,
                          &PyTuple_Type, &yarn, &position, &PyTuple_Type, &tuple))
        return NULL;
    if (PyTuple_Size(yarn) > 0) {
        config.rope_scaling = GPTOSS_ROPE_YARN;
        if (!PyArg_ParseTuple(yarn, "dddidp", &config.rope_factor, &config.rope_beta_fast,
                              &config.rope_beta_slow, &config.rope_original_positions,
                              &config.rope_attention_factor, &truncate))
            return NULL;
        config.rope_truncate = truncate != 0;
    }
    bool is_done = acquire(tuple, 0, &arrays) && fill_rope_table(&config, position, &arrays);
    return finish(&arrays, is_done);
}

static PyMethodDef functions[] = {
    {"kernel_attention_tile", attention_tile, METH_VARARGS, NULL},
    {"kernel_elementwise", elementwise, METH_VARARGS, NULL},
    {"math_expf", math_expf, METH_VARARGS, NULL},
    {"math_exp_log", math_exp_log, METH_VARARGS, NULL},
    {"math_sincos", math_sincos, METH_VARARGS, NULL},
    {"rope_table", rope_table, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int gptoss_python_add_attention_kernels(PyObject *module) {
    return PyModule_AddFunctions(module, functions);
}
