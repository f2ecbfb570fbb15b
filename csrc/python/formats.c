/* Number formats as private functions of _core: encoding and decoding of whole blocks. Arrays are
 * contiguous buffers; sizes are checked so far that nothing outside them is touched. */
#include "numeric/dtype.h"
#include "numeric/encode.h"
#include "numeric/mx.h"
#include "platform/fp_environment.h"
#include "python/binding.h"

enum { MAX_BUFFERS = 3 };

static bool release(Py_buffer *buffers, size_t count, bool done) {
    for (size_t i = 0; i < count; ++i)
        PyBuffer_Release(&buffers[i]);
    return done;
}

static bool check_size(const Py_buffer *buffer, size_t num_blocks, size_t block_bytes) {
    if ((size_t)buffer->len / block_bytes == num_blocks && (size_t)buffer->len % block_bytes == 0)
        return true;
    gptoss_python_raise_as("ArgumentError", "a buffer of %zd bytes does not hold %zu blocks of %zu",
                           buffer->len, num_blocks, block_bytes);
    return false;
}

static bool find_element(const char *name, enum gptoss_mx_element *element_out) {
    for (int i = 0; i < GPTOSS_MX_NUM_ELEMENTS; ++i)
        if (strcmp(gptoss_mx_formats[i].name, name) == 0) {
            *element_out = (enum gptoss_mx_element)i;
            return true;
        }
    gptoss_python_raise_as("ArgumentError", "no MX element format %s", name);
    return false;
}

/* mx_formats() -> [(name, bits, mantissa bits, min exponent, max exponent, max code), ...] */
static PyObject *mx_formats(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    PyObject *list = PyList_New(0);
    for (int i = 0; list != NULL && i < GPTOSS_MX_NUM_ELEMENTS; ++i) {
        const struct gptoss_mx_format *format = &gptoss_mx_formats[i];
        PyObject *item =
            Py_BuildValue("(siiiii)", format->name, format->num_bits, format->mantissa_bits,
                          format->min_exponent, format->max_exponent, (int)format->max_code);
        if (item == NULL || PyList_Append(list, item) != 0)
            Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

/* mx_encode(element, search, values, codes_out, scales_out) */
static PyObject *mx_encode(PyObject *module, PyObject *arguments) {
    (void)module;
    const char *name;
    int search;
    Py_buffer buffers[MAX_BUFFERS];
    Py_buffer *values = &buffers[0], *codes = &buffers[1], *scales = &buffers[2];
    if (!PyArg_ParseTuple(arguments, "spy*w*w*:mx_encode", &name, &search, values, codes, scales))
        return NULL;
    enum gptoss_mx_element element;
    size_t num_blocks = (size_t)scales->len;
    bool done = find_element(name, &element) && check_size(values, num_blocks, 128) &&
                check_size(codes, num_blocks, 32);
    if (done) {
        Py_BEGIN_ALLOW_THREADS
        uint64_t saved = gptoss_fp_environment_set_default();
        gptoss_mx_encode(element, search, values->buf, num_blocks, codes->buf, scales->buf);
        gptoss_fp_environment_restore(saved);
        Py_END_ALLOW_THREADS
    }
    return release(buffers, 3, done) ? Py_NewRef(Py_None) : NULL;
}

/* mx_decode(element, codes, scales, out) */
static PyObject *mx_decode(PyObject *module, PyObject *arguments) {
    (void)module;
    const char *name;
    Py_buffer buffers[MAX_BUFFERS];
    Py_buffer *codes = &buffers[0], *scales = &buffers[1], *out = &buffers[2];
    if (!PyArg_ParseTuple(arguments, "sy*y*w*:mx_decode", &name, codes, scales, out))
        return NULL;
    enum gptoss_mx_element element;
    size_t num_blocks = (size_t)scales->len;
    bool done = find_element(name, &element) && check_size(codes, num_blocks, 32) &&
                check_size(out, num_blocks, 128);
    if (done) {
        Py_BEGIN_ALLOW_THREADS
        uint64_t saved = gptoss_fp_environment_set_default();
        gptoss_mx_decode(element, codes->buf, scales->buf, num_blocks, out->buf);
        gptoss_fp_environment_restore(saved);
        Py_END_ALLOW_THREADS
    }
    return release(buffers, 3, done) ? Py_NewRef(Py_None) : NULL;
}

/* mx_encode_f16_scaled(exponent_bias, values, blocks_out) */
static PyObject *mx_encode_f16_scaled(PyObject *module, PyObject *arguments) {
    (void)module;
    int bias;
    Py_buffer buffers[MAX_BUFFERS];
    Py_buffer *values = &buffers[0], *out = &buffers[1];
    if (!PyArg_ParseTuple(arguments, "iy*w*:mx_encode_f16_scaled", &bias, values, out))
        return NULL;
    size_t num_blocks = (size_t)values->len / 128;
    bool done = check_size(values, num_blocks, 128) &&
                check_size(out, num_blocks, GPTOSS_MX_F16_BLOCK_BYTES);
    if (done) {
        Py_BEGIN_ALLOW_THREADS
        uint64_t saved = gptoss_fp_environment_set_default();
        gptoss_mx_encode_f16_scaled(bias, values->buf, num_blocks, out->buf);
        gptoss_fp_environment_restore(saved);
        Py_END_ALLOW_THREADS
    }
    return release(buffers, 2, done) ? Py_NewRef(Py_None) : NULL;
}

/* mx_decode_f16_scaled(exponent_bias, blocks, out) */
static PyObject *mx_decode_f16_scaled(PyObject *module, PyObject *arguments) {
    (void)module;
    int bias;
    Py_buffer buffers[MAX_BUFFERS];
    Py_buffer *blocks = &buffers[0], *out = &buffers[1];
    if (!PyArg_ParseTuple(arguments, "iy*w*:mx_decode_f16_scaled", &bias, blocks, out))
        return NULL;
    size_t num_blocks = (size_t)out->len / 128;
    bool done = check_size(out, num_blocks, 128) &&
                check_size(blocks, num_blocks, GPTOSS_MX_F16_BLOCK_BYTES);
    if (done) {
        Py_BEGIN_ALLOW_THREADS
        uint64_t saved = gptoss_fp_environment_set_default();
        gptoss_mx_decode_f16_scaled(bias, blocks->buf, num_blocks, out->buf);
        gptoss_fp_environment_restore(saved);
        Py_END_ALLOW_THREADS
    }
    return release(buffers, 2, done) ? Py_NewRef(Py_None) : NULL;
}

/* ---- storage formats of weights ---- */

static bool find_dtype(const char *name, enum gptoss_dtype *dtype_out) {
    for (int i = 0; i <= GPTOSS_DTYPE_MXFP8_E5M2; ++i)
        if (strcmp(gptoss_dtype_name((enum gptoss_dtype)i), name) == 0) {
            *dtype_out = (enum gptoss_dtype)i;
            return true;
        }
    gptoss_python_raise_as("ArgumentError", "no storage format %s", name);
    return false;
}

/* encode_blocks(format, values, out) -> index of the first block that cannot be encoded, or -1. */
static PyObject *encode_blocks(PyObject *module, PyObject *arguments) {
    (void)module;
    const char *name;
    Py_buffer buffers[MAX_BUFFERS];
    Py_buffer *values = &buffers[0], *out = &buffers[1];
    if (!PyArg_ParseTuple(arguments, "sy*w*:encode_blocks", &name, values, out))
        return NULL;
    enum gptoss_dtype dtype;
    size_t num_blocks = 0, encoded = 0;
    bool done = find_dtype(name, &dtype);
    if (done && !gptoss_can_encode(dtype)) {
        gptoss_python_raise_as("UnsupportedError", "nothing is encoded in %s", name);
        done = false;
    }
    if (done) {
        size_t block = gptoss_dtype_block(dtype);
        num_blocks = (size_t)values->len / sizeof(float) / block;
        done = check_size(values, num_blocks, block * sizeof(float)) &&
               check_size(out, num_blocks, (size_t)gptoss_dtype_row_bytes(dtype, block));
    }
    if (done) {
        Py_BEGIN_ALLOW_THREADS
        uint64_t saved = gptoss_fp_environment_set_default();
        encoded = gptoss_encode_blocks(dtype, values->buf, num_blocks, out->buf);
        gptoss_fp_environment_restore(saved);
        Py_END_ALLOW_THREADS
    }
    return release(buffers, 2, done)
               ? PyLong_FromLongLong(encoded < num_blocks ? (long long)encoded : -1)
               : NULL;
}

/* Whether gptoss_decode_row knows a format whose blocks hold their scales. */
static bool can_decode(enum gptoss_dtype dtype) {
    return dtype <= GPTOSS_DTYPE_BF16 ||
           (dtype >= GPTOSS_DTYPE_Q8_0 && !gptoss_dtype_has_planes(dtype));
}

/* decode_blocks(format, blocks, out) */
static PyObject *decode_blocks(PyObject *module, PyObject *arguments) {
    (void)module;
    const char *name;
    Py_buffer buffers[MAX_BUFFERS];
    Py_buffer *blocks = &buffers[0], *out = &buffers[1];
    if (!PyArg_ParseTuple(arguments, "sy*w*:decode_blocks", &name, blocks, out))
        return NULL;
    enum gptoss_dtype dtype;
    bool done = find_dtype(name, &dtype);
    if (done && !can_decode(dtype)) {
        gptoss_python_raise_as("UnsupportedError", "%s is no format of weights", name);
        done = false;
    }
    if (done) {
        size_t block = gptoss_dtype_block(dtype);
        size_t num_blocks = (size_t)out->len / sizeof(float) / block;
        done = check_size(out, num_blocks, block * sizeof(float)) &&
               check_size(blocks, num_blocks, (size_t)gptoss_dtype_row_bytes(dtype, block));
    }
    if (done) {
        Py_BEGIN_ALLOW_THREADS
        uint64_t saved = gptoss_fp_environment_set_default();
        gptoss_decode_row(dtype, blocks->buf, NULL, (size_t)out->len / sizeof(float), out->buf);
        gptoss_fp_environment_restore(saved);
        Py_END_ALLOW_THREADS
    }
    return release(buffers, 2, done) ? Py_NewRef(Py_None) : NULL;
}

static PyMethodDef functions[] = {
    {"mx_formats", mx_formats, METH_NOARGS, NULL},
    {"mx_encode", mx_encode, METH_VARARGS, NULL},
    {"mx_decode", mx_decode, METH_VARARGS, NULL},
    {"mx_encode_f16_scaled", mx_encode_f16_scaled, METH_VARARGS, NULL},
    {"mx_decode_f16_scaled", mx_decode_f16_scaled, METH_VARARGS, NULL},
    {"encode_blocks", encode_blocks, METH_VARARGS, NULL},
    {"decode_blocks", decode_blocks, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int gptoss_python_add_formats(PyObject *module) {
    return PyModule_AddFunctions(module, functions);
}
