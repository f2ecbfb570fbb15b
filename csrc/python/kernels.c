/* The kernels as private functions of _core, for tests, benchmarks and the self-test: the list of
 * all of them, the matrix products and the layout of weights that a device is given. Arrays are
 * contiguous buffers, float32 unless said otherwise, and checked so far that no kernel reads or
 * writes outside them. A matrix is a tuple (layout, num_columns, row_bytes, scale_row_bytes, data,
 * scales) with bytes for data and scales (empty where the layout has none). */
#include <string.h>

#include "cpu/bf16_units.h"
#include "cpu/machine_limits.h"
#include "numeric/block_formats.h"
#include "platform/allocator.h"
#include "python/binding.h"
#include "vulkan/vulkan_tiles.h"

/* kernels_attention.c */
int gptoss_python_add_attention_kernels(PyObject *module);

static const char *const layout_names[GPTOSS_NUM_LAYOUTS] = {
    [GPTOSS_LAYOUT_F32] = "f32",
    [GPTOSS_LAYOUT_F16] = "f16",
    [GPTOSS_LAYOUT_BF16] = "bf16",
    [GPTOSS_LAYOUT_F32_TRANSPOSED] = "f32_transposed",
    [GPTOSS_LAYOUT_F16_TRANSPOSED] = "f16_transposed",
    [GPTOSS_LAYOUT_BF16_TRANSPOSED] = "bf16_transposed",
    [GPTOSS_LAYOUT_MXFP4] = "mxfp4",
    [GPTOSS_LAYOUT_MXFP4_GGUF] = "mxfp4_gguf",
    [GPTOSS_LAYOUT_Q8_0] = "q8_0",
#define NAME_OF(name, NAME, ...) [GPTOSS_LAYOUT_##NAME] = #name,
    GPTOSS_FOR_BLOCK_FORMATS(NAME_OF) GPTOSS_FOR_PLANE_FORMATS(NAME_OF)};

/* ---- the list ---- */

static const char *const other_operations[] = {
    "multiply_panel_unscaled",
    "multiply_panel_scaled",
    "attention_tile_f32",
    "attention_tile_f16",
    "attention_merge",
    "rms_norm",
    "layer_norm",
    "rope",
    "rope_neighbours",
    "swiglu",
    "silu_multiply",
    "gelu",
    "add",
    "multiply_add",
    "divide",
    "convert_f32_f16",
};

/* Steals operation. */
static bool append_kernel(PyObject *list, const char *isa, bool available, PyObject *operation) {
    if (operation == NULL)
        return false;
    PyObject *item = Py_BuildValue(
        "{s:N,s:O,s:s,s:O}", "name", PyUnicode_FromFormat("%U_%s", operation, isa), "operation",
        operation, "isa", isa, "available", available ? Py_True : Py_False);
    bool done = item != NULL && PyList_Append(list, item) == 0;
    Py_XDECREF(item);
    Py_DECREF(operation);
    return done;
}

static bool append_level(PyObject *list, size_t isa) {
    const char *name = gptoss_isa_name(isa);
    bool available = gptoss_isa_available(isa);
    for (int layout = 0; layout < GPTOSS_NUM_LAYOUTS; ++layout) {
        if (!append_kernel(list, name, available,
                           PyUnicode_FromFormat("matvec_%s", layout_names[layout])) ||
            !append_kernel(list, name, available,
                           PyUnicode_FromFormat("expand_panel_%s", layout_names[layout])))
            return false;
    }
    for (size_t i = 0; i < sizeof other_operations / sizeof other_operations[0]; ++i)
        if (!append_kernel(list, name, available, PyUnicode_FromString(other_operations[i])))
            return false;
    return true;
}

/* The products of a bf16 instruction set, by layout. */
static bool append_unit(PyObject *list, size_t unit) {
    for (int layout = 0; layout < GPTOSS_NUM_LAYOUTS; ++layout)
        if (gptoss_bf16_has_layout((enum gptoss_layout)layout) &&
            !append_kernel(list, gptoss_bf16_isa_name(unit), gptoss_bf16_isa_available(unit),
                           PyUnicode_FromFormat("product_bf16_%s", layout_names[layout])))
            return false;
    return true;
}

/* kernels() -> [{"name", "operation", "isa", "available"}, ...]: every kernel compiled in,
 * instruction sets worst first. */
static PyObject *list_kernels(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    PyObject *list = PyList_New(0);
    for (size_t isa = 0; list != NULL && isa < gptoss_num_isas(); ++isa)
        if (!append_level(list, isa))
            Py_CLEAR(list);
    for (size_t unit = 0; list != NULL && unit < gptoss_num_bf16_isas(); ++unit)
        if (!append_unit(list, unit))
            Py_CLEAR(list);
    return list;
}

/* ---- arguments ---- */

enum { MAX_COUNT = 1 << 30 }; /* of rows and columns, so that no product of sizes overflows */

static const struct gptoss_kernels *select_kernels(const char *isa) {
    const struct gptoss_kernels *kernels = gptoss_kernels_select(isa);
    if (kernels == NULL)
        gptoss_python_raise_as("UnsupportedError", "no kernels for %s on this machine", isa);
    return kernels;
}

static bool check(bool holds, const char *what) {
    if (!holds)
        gptoss_python_raise_as("ArgumentError", "%s", what);
    return holds;
}

static bool holds_floats(const Py_buffer *buffer, int64_t num_floats) {
    return check((uintptr_t)buffer->buf % sizeof(float) == 0 &&
                     buffer->len / (int64_t)sizeof(float) >= num_floats,
                 "a float array is too short, or not aligned to 4 bytes");
}

/* Bytes from the first to the last that the rows before end_row reach, in data and in scales. */
static void matrix_extent(const struct gptoss_matrix *matrix, int64_t end_row, int64_t *data_out,
                          int64_t *scales_out) {
    bool transposed = gptoss_layout_is_transposed(matrix->layout);
    int64_t num_stored = transposed ? matrix->num_columns : end_row;
    int64_t width = transposed ? end_row : matrix->num_columns;
    uint64_t bytes = gptoss_dtype_row_bytes(gptoss_layout_dtype(matrix->layout), (uint64_t)width);
    *data_out = (num_stored - 1) * matrix->row_bytes + (int64_t)bytes;
    *scales_out = gptoss_dtype_has_planes(gptoss_layout_dtype(matrix->layout))
                      ? (end_row - 1) * matrix->scale_row_bytes + matrix->num_columns / 32
                      : 0;
}

/* A matrix and the rows of it that a kernel is to work on. */
struct rows {
    struct gptoss_matrix matrix;
    int64_t first_row, num_rows;
    Py_buffer data, scales;
};

static void release_rows(struct rows *rows) {
    PyBuffer_Release(&rows->data);
    PyBuffer_Release(&rows->scales);
}

static bool check_rows(struct rows *rows, const char *layout) {
    struct gptoss_matrix *matrix = &rows->matrix;
    int64_t data_bytes, scale_bytes;
    int found = 0;
    while (found < GPTOSS_NUM_LAYOUTS && strcmp(layout_names[found], layout) != 0)
        ++found;
    if (!check(found < GPTOSS_NUM_LAYOUTS, "no such layout"))
        return false;
    matrix->layout = (enum gptoss_layout)found;
    matrix->num_rows = rows->first_row + rows->num_rows;
    matrix->data = rows->data.buf;
    matrix->scales = rows->scales.buf;
    bool sane = matrix->num_columns >= 1 && matrix->num_columns < MAX_COUNT &&
                matrix->row_bytes >= 0 && matrix->row_bytes < MAX_COUNT &&
                matrix->scale_row_bytes >= 0 && matrix->scale_row_bytes < MAX_COUNT &&
                rows->first_row >= 0 && rows->first_row < MAX_COUNT && rows->num_rows >= 1 &&
                rows->num_rows < MAX_COUNT;
    int64_t block = gptoss_dtype_block(gptoss_layout_dtype(matrix->layout));
    if (!check(sane && matrix->num_columns % block == 0, "sizes out of range"))
        return false;
    matrix_extent(matrix, matrix->num_rows, &data_bytes, &scale_bytes);
    return check(rows->data.len >= data_bytes && rows->scales.len >= scale_bytes,
                 "the matrix is larger than its memory");
}

/* tuple: the matrix. On failure nothing is held. */
static bool parse_rows(PyObject *tuple, long long first_row, long long num_rows,
                       struct rows *rows) {
    const char *layout;
    long long num_columns, row_bytes, scale_row_bytes;
    memset(rows, 0, sizeof *rows);
    if (!PyArg_ParseTuple(tuple, "sLLLy*y*:matrix", &layout, &num_columns, &row_bytes,
                          &scale_row_bytes, &rows->data, &rows->scales))
        return false;
    rows->matrix.num_columns = num_columns;
    rows->matrix.row_bytes = row_bytes;
    rows->matrix.scale_row_bytes = scale_row_bytes;
    rows->first_row = first_row;
    rows->num_rows = num_rows;
    if (check_rows(rows, layout))
        return true;
    release_rows(rows);
    return false;
}

/* ---- the products ---- */

/* kernel_matvec(isa, matrix, first_row, num_rows, x_lanes, num_vectors, out
 * [num_vectors][num_rows]).
 */
static PyObject *matvec(PyObject *module, PyObject *arguments) {
    (void)module;
    const char *isa;
    PyObject *tuple;
    long long first_row, num_rows, num_vectors;
    Py_buffer x, out;
    struct rows rows;
    if (!PyArg_ParseTuple(arguments, "sO!LLy*Lw*:kernel_matvec", &isa, &PyTuple_Type, &tuple,
                          &first_row, &num_rows, &x, &num_vectors, &out))
        return NULL;
    bool done = false;
    const struct gptoss_kernels *kernels = select_kernels(isa);
    if (kernels != NULL && parse_rows(tuple, first_row, num_rows, &rows)) {
        const struct gptoss_matrix *matrix = &rows.matrix;
        int64_t num_inputs =
            gptoss_padded_columns(matrix->num_columns, gptoss_layout_per_lane(matrix->layout));
        done = check(num_vectors >= 1 && num_vectors <= GPTOSS_MAX_VECTORS,
                     "1 to 4 vectors are multiplied at once") &&
               holds_floats(&x, num_vectors * num_inputs) &&
               holds_floats(&out, num_vectors * num_rows);
        if (done) {
            Py_BEGIN_ALLOW_THREADS
            kernels->matvec[matrix->layout](matrix, first_row, num_rows, x.buf,
                                            (int32_t)num_vectors, out.buf);
            Py_END_ALLOW_THREADS
        }
        release_rows(&rows);
    }
    PyBuffer_Release(&x);
    PyBuffer_Release(&out);
    return done ? Py_NewRef(Py_None) : NULL;
}

/* kernel_expand_panel(isa, matrix, first_row, num_rows <= 32, values_out, scales_out): shapes as in
 * cpu/kernels.h. */
static PyObject *expand_panel(PyObject *module, PyObject *arguments) {
    (void)module;
    const char *isa;
    PyObject *tuple;
    long long first_row, num_rows;
    Py_buffer values, scales;
    struct rows rows;
    if (!PyArg_ParseTuple(arguments, "sO!LLw*w*:kernel_expand_panel", &isa, &PyTuple_Type, &tuple,
                          &first_row, &num_rows, &values, &scales))
        return NULL;
    bool done = false;
    const struct gptoss_kernels *kernels = select_kernels(isa);
    if (kernels != NULL && parse_rows(tuple, first_row, num_rows, &rows)) {
        const struct gptoss_matrix *matrix = &rows.matrix;
        int per_lane = gptoss_layout_per_lane(matrix->layout);
        bool is_scaled = gptoss_layout_is_scaled(matrix->layout);
        struct gptoss_panel panel = {matrix->num_columns, per_lane, values.buf,
                                     is_scaled ? scales.buf : NULL};
        done = check(num_rows <= GPTOSS_PANEL_ROWS, "a panel has 32 rows") &&
               holds_floats(&values, gptoss_panel_num_values(matrix->num_columns, per_lane)) &&
               (!is_scaled ||
                holds_floats(&scales, gptoss_panel_num_scales(matrix->num_columns, per_lane)));
        if (done) {
            Py_BEGIN_ALLOW_THREADS
            kernels->expand_panel[matrix->layout](matrix, first_row, num_rows, &panel);
            Py_END_ALLOW_THREADS
        }
        release_rows(&rows);
    }
    PyBuffer_Release(&values);
    PyBuffer_Release(&scales);
    return done ? Py_NewRef(Py_None) : NULL;
}

static bool run_multiply_panel(const char *isa, struct gptoss_panel *panel, const Py_buffer *values,
                               const Py_buffer *scales, const Py_buffer *x_tiles,
                               long long num_tiles, const Py_buffer *out) {
    const struct gptoss_kernels *kernels = select_kernels(isa);
    int64_t tile_out = GPTOSS_TILE_TOKENS * GPTOSS_PANEL_ROWS;
    if (kernels == NULL || !check(panel->num_columns >= 1 && panel->num_columns < MAX_COUNT &&
                                      num_tiles >= 1 && num_tiles <= GPTOSS_MAX_TILES,
                                  "sizes out of range"))
        return false;
    int64_t num_values = gptoss_panel_num_values(panel->num_columns, panel->per_lane);
    bool is_scaled = panel->scales != NULL;
    if (!holds_floats(values, num_values) || !holds_floats(out, num_tiles * tile_out) ||
        !holds_floats(x_tiles, num_tiles * (num_values / GPTOSS_PANEL_ROWS) * GPTOSS_TILE_TOKENS) ||
        (is_scaled &&
         !holds_floats(scales, gptoss_panel_num_scales(panel->num_columns, panel->per_lane))))
        return false;
    float *scratch = gptoss_allocate(GPTOSS_MULTIPLY_SCRATCH, sizeof(float));
    if (scratch == NULL) {
        PyErr_NoMemory();
        return false;
    }
    gptoss_multiply_panel_fn *multiply =
        is_scaled ? kernels->multiply_panel_scaled : kernels->multiply_panel_unscaled;
    Py_BEGIN_ALLOW_THREADS
    multiply(panel, x_tiles->buf, num_tiles, out->buf, scratch);
    Py_END_ALLOW_THREADS
    gptoss_free(scratch);
    return true;
}

/* kernel_multiply_panel(isa, num_columns, values, scales, x_tiles, num_tiles, out): scales empty:
 * unscaled. */
static PyObject *multiply_panel(PyObject *module, PyObject *arguments) {
    (void)module;
    const char *isa;
    long long num_columns, num_tiles;
    Py_buffer values, scales, x_tiles, out;
    if (!PyArg_ParseTuple(arguments, "sLy*y*y*Lw*:kernel_multiply_panel", &isa, &num_columns,
                          &values, &scales, &x_tiles, &num_tiles, &out))
        return NULL;
    enum gptoss_layout layout = scales.len > 0 ? GPTOSS_LAYOUT_MXFP4 : GPTOSS_LAYOUT_F32;
    struct gptoss_panel panel = {num_columns, gptoss_layout_per_lane(layout), values.buf,
                                 scales.len > 0 ? scales.buf : NULL};
    bool done = run_multiply_panel(isa, &panel, &values, &scales, &x_tiles, num_tiles, &out);
    PyBuffer_Release(&values);
    PyBuffer_Release(&scales);
    PyBuffer_Release(&x_tiles);
    PyBuffer_Release(&out);
    return done ? Py_NewRef(Py_None) : NULL;
}

/* ---- products at precision bf16 ---- */

static const struct gptoss_bf16_unit *select_unit(const char *isa,
                                                  const struct gptoss_kernels **kernels_out) {
    const struct gptoss_bf16_unit *unit = gptoss_bf16_unit_select(isa, kernels_out);
    if (unit == NULL)
        gptoss_python_raise_as("UnsupportedError", "no bf16 products by %s on this machine", isa);
    return unit;
}

/* As the back end carries out a product, but on one thread. False: no memory. */
static bool carry_out(const struct gptoss_kernels *kernels, struct gptoss_product *product) {
    const struct gptoss_product_form *form = product->form;
    int64_t num_pieces = gptoss_product_num_pieces(product),
            piece_bytes = form->piece_bytes(product), num_rows = product->matrix.num_rows;
    uint8_t *packed = gptoss_allocate((size_t)num_pieces, (size_t)piece_bytes);
    void *scratch = gptoss_allocate(form->scratch_bytes(product), 1);
    bool done = packed != NULL && scratch != NULL;
    for (int64_t piece = 0; done && piece < num_pieces; ++piece)
        form->pack(product, piece, packed + piece * piece_bytes);
    product->packed = packed;
    for (int64_t row = 0; done && row < num_rows; row += form->task_rows) {
        int64_t left = num_rows - row;
        const struct gptoss_product_part part = {
            row, left < form->task_rows ? left : form->task_rows, 0, product->num_tokens};
        form->multiply(kernels, product, &part, NULL, scratch);
    }
    gptoss_free(packed);
    gptoss_free(scratch);
    return done;
}

static bool run_product(const char *isa, const char *form, struct gptoss_product *product,
                        const Py_buffer *x, const Py_buffer *out) {
    const struct gptoss_kernels *kernels;
    const struct gptoss_bf16_unit *unit = select_unit(isa, &kernels);
    int64_t num_tokens = product->num_tokens;
    if (unit == NULL ||
        !check(gptoss_bf16_has_layout(product->matrix.layout), "no such layout at bf16") ||
        !check(num_tokens >= 1 && num_tokens <= MAX_COUNT, "sizes out of range") ||
        !holds_floats(x, num_tokens * product->matrix.num_columns) ||
        !holds_floats(out, num_tokens * product->matrix.num_rows))
        return false;
    product->form = strcmp(form, "vector") == 0 ? unit->vector_form : unit->panel_form;
    bool done;
    Py_BEGIN_ALLOW_THREADS
    done = carry_out(kernels, product);
    Py_END_ALLOW_THREADS
    if (!done)
        PyErr_NoMemory();
    return done;
}

/* kernel_product_bf16(isa, form "vector" or "panel", matrix, num_rows, x [num_tokens][num_columns],
 * num_tokens, out [num_tokens][num_rows]). */
static PyObject *product_bf16(PyObject *module, PyObject *arguments) {
    (void)module;
    const char *isa, *form;
    PyObject *tuple;
    long long num_rows, num_tokens;
    Py_buffer x, out;
    struct rows rows;
    if (!PyArg_ParseTuple(arguments, "ssO!Ly*Lw*:kernel_product_bf16", &isa, &form, &PyTuple_Type,
                          &tuple, &num_rows, &x, &num_tokens, &out))
        return NULL;
    bool done = false;
    if (parse_rows(tuple, 0, num_rows, &rows)) {
        struct gptoss_product product = {
            .matrix = rows.matrix,
            .num_tokens = num_tokens,
            .x = x.buf,
            .x_stride = rows.matrix.num_columns,
            .out = out.buf,
            .out_stride = num_rows,
        };
        done = run_product(isa, form, &product, &x, &out);
        release_rows(&rows);
    }
    PyBuffer_Release(&x);
    PyBuffer_Release(&out);
    return done ? Py_NewRef(Py_None) : NULL;
}

/* ---- the machine's limits ---- */

/* measure_fma(isa, num_rounds) -> floating-point operations done. isa: of kernels, or a bf16 unit.
 */
static PyObject *measure_fma(PyObject *module, PyObject *arguments) {
    (void)module;
    const char *isa;
    long long num_rounds;
    const struct gptoss_kernels *kernels;
    if (!PyArg_ParseTuple(arguments, "sL:measure_fma", &isa, &num_rounds) ||
        (gptoss_bf16_unit_select(isa, &kernels) == NULL && select_kernels(isa) == NULL))
        return NULL;
    int64_t num_operations;
    Py_BEGIN_ALLOW_THREADS
    num_operations = gptoss_measure_fma(isa, num_rounds);
    Py_END_ALLOW_THREADS
    return PyLong_FromLongLong(num_operations);
}

/* measure_read(isa, buffer): reads it once. */
static PyObject *measure_read(PyObject *module, PyObject *arguments) {
    (void)module;
    const char *isa;
    Py_buffer memory;
    if (!PyArg_ParseTuple(arguments, "sy*:measure_read", &isa, &memory))
        return NULL;
    bool done = select_kernels(isa) != NULL;
    if (done) {
        Py_BEGIN_ALLOW_THREADS
        gptoss_measure_read(isa, memory.buf, (size_t)memory.len);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&memory);
    return done ? Py_NewRef(Py_None) : NULL;
}

/* vulkan_tile(codes, scales, num_columns, is_mxfp4) -> (tile, its scales, shift): up to 16 rows as
 * the device's layouts in rows have them, without what these pad with. shift: that of scales which
 * halves can have in them, else None. */
static PyObject *vulkan_tile(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer codes, scales;
    Py_ssize_t num_columns;
    int is_mxfp4;
    if (!PyArg_ParseTuple(arguments, "y*y*np:vulkan_tile", &codes, &scales, &num_columns,
                          &is_mxfp4))
        return NULL;
    PyObject *tile = NULL, *tile_scales = NULL, *result = NULL;
    Py_ssize_t row_bytes = is_mxfp4 ? num_columns / 2 : num_columns;
    Py_ssize_t scale_row_bytes = num_columns / (is_mxfp4 ? 32 : 16);
    if (check(num_columns > 0 && num_columns % 32 == 0 && num_columns <= GPTOSS_MAX_TILE_COLUMNS &&
                  codes.len % row_bytes == 0 && codes.len <= 16 * row_bytes &&
                  scales.len == codes.len / row_bytes * scale_row_bytes,
              "not up to 16 rows of whole blocks")) {
        Py_ssize_t bytes = (Py_ssize_t)gptoss_tile_bytes(num_columns, is_mxfp4 != 0);
        Py_ssize_t scale_bytes = (Py_ssize_t)gptoss_tile_scale_bytes(num_columns, is_mxfp4 != 0);
        tile = PyByteArray_FromStringAndSize(NULL, bytes);
        tile_scales = PyByteArray_FromStringAndSize(NULL, scale_bytes);
    }
    if (tile != NULL && tile_scales != NULL) {
        uint8_t *to = (uint8_t *)PyByteArray_AsString(tile);
        uint8_t *scales_to = (uint8_t *)PyByteArray_AsString(tile_scales);
        memset(to, 0, (size_t)PyByteArray_Size(tile));
        memset(scales_to, 0, (size_t)PyByteArray_Size(tile_scales));
        for (int row = 0; row < codes.len / row_bytes; ++row)
            gptoss_tile_put_row((const uint8_t *)codes.buf + row * row_bytes,
                                (const uint8_t *)scales.buf + row * scale_row_bytes, num_columns,
                                is_mxfp4 != 0, row, to, scales_to);
        struct gptoss_scale_range range = {255, 0};
        uint32_t shift = 0;
        if (is_mxfp4)
            gptoss_tile_widen_range(scales_to, num_columns, &range);
        bool in_halves = is_mxfp4 && gptoss_tile_find_shift(range, &shift);
        PyObject *number = in_halves ? PyLong_FromUnsignedLong(shift) : Py_NewRef(Py_None);
        if (number != NULL)
            result = PyTuple_Pack(3, tile, tile_scales, number);
        Py_XDECREF(number);
    }
    Py_XDECREF(tile);
    Py_XDECREF(tile_scales);
    PyBuffer_Release(&codes);
    PyBuffer_Release(&scales);
    return result;
}

static PyMethodDef functions[] = {
    {"kernels", list_kernels, METH_NOARGS, NULL},
    {"kernel_matvec", matvec, METH_VARARGS, NULL},
    {"kernel_expand_panel", expand_panel, METH_VARARGS, NULL},
    {"kernel_multiply_panel", multiply_panel, METH_VARARGS, NULL},
    {"kernel_product_bf16", product_bf16, METH_VARARGS, NULL},
    {"measure_fma", measure_fma, METH_VARARGS, NULL},
    {"measure_read", measure_read, METH_VARARGS, NULL},
    {"vulkan_tile", vulkan_tile, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int gptoss_python_add_kernels(PyObject *module) {
    if (PyModule_AddFunctions(module, functions) != 0)
        return -1;
    return gptoss_python_add_attention_kernels(module);
}
