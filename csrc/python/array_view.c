/* _core.ArrayView: the memory of an array through the buffer protocol. NumPy wraps it without a
 * copy. */
#include "python/binding.h"

struct array_view {
    PyObject_HEAD struct gptoss_python_owner *owner; /* NULL: the memory is this object's own */
    struct gptoss_python_array array;
    Py_ssize_t item_bytes, num_bytes;
};

/* Formats of the struct module, whose language knows neither bfloat16 nor 8-bit floats: those go
 * out as their bits, as blocks do. */
static const char *format_of(enum gptoss_dtype dtype) {
    switch (dtype) {
    case GPTOSS_DTYPE_F32: return "f";
    case GPTOSS_DTYPE_F16: return "e";
    case GPTOSS_DTYPE_F64: return "d";
    case GPTOSS_DTYPE_BF16:
    case GPTOSS_DTYPE_U16: return "H";
    case GPTOSS_DTYPE_I8: return "b";
    case GPTOSS_DTYPE_I16: return "h";
    case GPTOSS_DTYPE_U32: return "I";
    case GPTOSS_DTYPE_I32: return "i";
    case GPTOSS_DTYPE_U64: return "Q";
    case GPTOSS_DTYPE_I64: return "q";
    case GPTOSS_DTYPE_BOOL: return "?";
    default: return "B";
    }
}

void gptoss_python_array_pack(struct gptoss_python_array *array) {
    Py_ssize_t stride = (Py_ssize_t)gptoss_dtype_bytes(array->dtype);
    for (int d = array->num_dims - 1; d >= 0; d--) {
        array->strides[d] = stride;
        stride *= array->shape[d];
    }
}

PyObject *gptoss_python_view(PyTypeObject *type, struct gptoss_python_owner *owner,
                             const struct gptoss_python_array *array) {
    struct array_view *view = (struct array_view *)PyType_GenericAlloc(type, 0);
    if (view == NULL) {
        if (owner == NULL)
            gptoss_free(array->data);
        return NULL;
    }
    view->array = *array;
    view->item_bytes = view->num_bytes = (Py_ssize_t)gptoss_dtype_bytes(array->dtype);
    for (int d = 0; d < array->num_dims; d++)
        view->num_bytes *= array->shape[d];
    if (owner != NULL) {
        view->owner = gptoss_python_owner_retain(owner);
        atomic_fetch_add(&owner->num_views, 1);
    }
    return (PyObject *)view;
}

static void deallocate(PyObject *self) {
    struct array_view *view = (struct array_view *)self;
    if (view->owner == NULL) {
        gptoss_free(view->array.data);
    } else {
        atomic_fetch_sub(&view->owner->num_views, 1);
        gptoss_python_owner_release(view->owner);
    }
    PyTypeObject *type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type);
}

static bool is_packed(const struct gptoss_python_array *array) {
    struct gptoss_python_array packed = *array;
    gptoss_python_array_pack(&packed);
    return memcmp(packed.strides, array->strides,
                  (size_t)array->num_dims * sizeof packed.strides[0]) == 0;
}

static int get_buffer(PyObject *self, Py_buffer *buffer, int flags) {
    struct array_view *view = (struct array_view *)self;
    buffer->obj = NULL;
    bool read_only = view->owner != NULL;
    if (read_only && (flags & PyBUF_WRITABLE)) {
        PyErr_SetString(PyExc_BufferError,
                        "this array shows the engine's own memory and is read-only");
        return -1;
    }
    bool wants_strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES;
    bool wants_packed = (flags & PyBUF_C_CONTIGUOUS) == PyBUF_C_CONTIGUOUS ||
                        (flags & PyBUF_ANY_CONTIGUOUS) == PyBUF_ANY_CONTIGUOUS || !wants_strides;
    bool wants_fortran =
        (flags & PyBUF_F_CONTIGUOUS) == PyBUF_F_CONTIGUOUS && view->array.num_dims > 1;
    if ((wants_packed && !is_packed(&view->array)) || wants_fortran) {
        PyErr_SetString(PyExc_BufferError, "this array is not contiguous in the order asked for");
        return -1;
    }
    buffer->obj = Py_NewRef(self);
    buffer->buf = view->array.data;
    buffer->len = view->num_bytes;
    buffer->itemsize = view->item_bytes;
    buffer->readonly = read_only;
    buffer->ndim = view->array.num_dims;
    buffer->format = (flags & PyBUF_FORMAT) ? (char *)format_of(view->array.dtype) : NULL;
    buffer->shape = (flags & PyBUF_ND) ? view->array.shape : NULL;
    buffer->strides = wants_strides ? view->array.strides : NULL;
    buffer->suboffsets = NULL;
    buffer->internal = NULL;
    return 0;
}

static PyType_Slot slots[] = {
    {Py_tp_doc, "Memory of the engine, as a buffer."},
    {Py_tp_dealloc, deallocate},
    {Py_bf_getbuffer, get_buffer},
    {0, NULL},
};

PyType_Spec gptoss_python_array_view_spec = {
    .name = "gptoss._core.ArrayView",
    .basicsize = sizeof(struct array_view),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = slots,
};
