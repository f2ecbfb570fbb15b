#include "platform/allocator.h"
#include "python/binding.h"

bool gptoss_python_progress(PyObject *object, PyObject **progress_out) {
    if (object != NULL && object != Py_None && !PyCallable_Check(object)) {
        gptoss_python_raise_as("ArgumentError",
                               "progress must be a callable taking (done, total), or None");
        return false;
    }
    *progress_out = object == Py_None ? NULL : object;
    return true;
}

static bool set_token(int32_t *tokens, Py_ssize_t index, int64_t value) {
    if (value < INT32_MIN || value > INT32_MAX) {
        gptoss_python_raise_as("ArgumentError", "token %lld at index %zd is no token id",
                               (long long)value, index);
        return false;
    }
    tokens[index] = (int32_t)value;
    return true;
}

static int32_t *allocate_tokens(size_t num_tokens) {
    int32_t *tokens = gptoss_allocate(num_tokens, sizeof *tokens);
    if (tokens == NULL)
        gptoss_python_raise_as("OutOfMemoryError", "cannot allocate memory for %zu tokens",
                               num_tokens);
    return tokens;
}

/* One element of any native integer type as 64 bits; unsigned values beyond them saturate, and are
 * refused later. */
static int64_t read_integer(const char *element, Py_ssize_t num_bytes, bool is_signed) {
    uint64_t bits = 0;
    int shift = 64 - 8 * (int)num_bytes;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    memcpy(&bits, element, (size_t)num_bytes);
#else
    memcpy((char *)&bits + 8 - num_bytes, element, (size_t)num_bytes);
#endif
    if (is_signed)
        return (int64_t)(bits << shift) >> shift;
    return bits > INT64_MAX ? INT64_MAX : (int64_t)bits;
}

/* Whether a buffer holds native integers, and of which kind. */
static bool is_integer_format(const Py_buffer *buffer, bool *is_signed_out) {
    const char *format = buffer->format == NULL ? "B" : buffer->format;
    if (format[0] == '@' || format[0] == '=')
        format++;
    if (strlen(format) != 1 || buffer->itemsize > 8)
        return false;
    *is_signed_out = strchr("bhilqn", format[0]) != NULL;
    return *is_signed_out || strchr("BHILQN", format[0]) != NULL;
}

/* 1: read; 0: not an array of native integers, try it as a sequence; -1: exception. */
static int read_buffer(PyObject *object, int32_t **tokens_out, size_t *num_tokens_out) {
    Py_buffer buffer;
    if (!PyObject_CheckBuffer(object))
        return 0;
    if (PyObject_GetBuffer(object, &buffer, PyBUF_FORMAT | PyBUF_STRIDES) != 0) {
        PyErr_Clear();
        return 0;
    }
    int result = 0;
    bool is_signed;
    int32_t *tokens = NULL;
    if (!is_integer_format(&buffer, &is_signed))
        goto cleanup;
    result = -1;
    if (buffer.ndim != 1) {
        gptoss_python_raise_as("ArgumentError",
                               "tokens must be one-dimensional, not of %d dimensions", buffer.ndim);
        goto cleanup;
    }
    Py_ssize_t num_tokens = buffer.shape[0];
    tokens = allocate_tokens((size_t)num_tokens);
    if (tokens == NULL)
        goto cleanup;
    for (Py_ssize_t i = 0; i < num_tokens; i++) {
        const char *element = (const char *)buffer.buf + i * buffer.strides[0];
        if (!set_token(tokens, i, read_integer(element, buffer.itemsize, is_signed)))
            goto cleanup;
    }
    *tokens_out = tokens;
    *num_tokens_out = (size_t)num_tokens;
    tokens = NULL;
    result = 1;
cleanup:
    gptoss_free(tokens);
    PyBuffer_Release(&buffer);
    return result;
}

static bool read_item(PyObject *item, int32_t *tokens, Py_ssize_t index) {
    int overflow = 0;
    PyObject *integer = PyNumber_Index(item);
    if (integer == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_TypeError))
            return false;
        PyErr_Clear();
        gptoss_python_raise_as("ArgumentError",
                               "tokens must be integers; the one at index %zd is %R", index, item);
        return false;
    }
    int64_t value = PyLong_AsLongLongAndOverflow(integer, &overflow);
    Py_DECREF(integer);
    if (overflow != 0)
        value = overflow > 0 ? INT64_MAX : INT64_MIN;
    return set_token(tokens, index, value);
}

static bool read_sequence(PyObject *object, int32_t **tokens_out, size_t *num_tokens_out) {
    /* A tuple of our own: nobody can change it while the items' __index__ run. */
    PyObject *items = PySequence_Tuple(object);
    if (items == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_TypeError))
            return false;
        PyErr_Clear();
        gptoss_python_raise_as("ArgumentError", "tokens must be a sequence of integers, not %R",
                               object);
        return false;
    }
    Py_ssize_t num_tokens = PyTuple_Size(items), i = 0;
    int32_t *tokens = allocate_tokens((size_t)num_tokens);
    if (tokens != NULL) {
        while (i < num_tokens && read_item(PyTuple_GetItem(items, i), tokens, i))
            i++;
    }
    Py_DECREF(items);
    if (tokens == NULL || i < num_tokens) {
        gptoss_free(tokens);
        return false;
    }
    *tokens_out = tokens;
    *num_tokens_out = (size_t)num_tokens;
    return true;
}

bool gptoss_python_tokens(PyObject *object, int32_t **tokens_out, size_t *num_tokens_out) {
    if (PyUnicode_Check(object)) {
        gptoss_python_raise_as("ArgumentError",
                               "tokens must be integers, not text; encode it by model.tokenizer");
        return false;
    }
    int result = read_buffer(object, tokens_out, num_tokens_out);
    return result == 0 ? read_sequence(object, tokens_out, num_tokens_out) : result > 0;
}
