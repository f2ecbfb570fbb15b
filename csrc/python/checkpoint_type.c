/* _core.Checkpoint: the tables of files without a model, and the metadata of either. */
#include "python/binding.h"

struct checkpoint_object {
    PyObject_HEAD struct gptoss_python_owner *owner;
};

static const struct gptoss_checkpoint *checkpoint_of(PyObject *self) {
    return ((struct checkpoint_object *)self)->owner->checkpoint;
}

static PyObject *new_checkpoint(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"path", NULL};
    PyObject *path;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O&:Checkpoint", names,
                                     PyUnicode_FSConverter, &path))
        return NULL;
    struct checkpoint_object *self = NULL;
    struct gptoss_checkpoint *checkpoint = NULL;
    struct gptoss_error error;
    struct gptoss_python_call call;
    gptoss_python_call_begin(&call, NULL, NULL);
    enum gptoss_status status = gptoss_checkpoint_list(PyBytes_AsString(path), &checkpoint, &error);
    PyObject *opened = gptoss_python_call_end(&call, status, &error);
    Py_DECREF(path);
    struct gptoss_python_owner *owner =
        opened == NULL ? NULL : gptoss_python_owner_create(NULL, NULL, NULL);
    Py_XDECREF(opened);
    if (owner == NULL) {
        gptoss_checkpoint_release(checkpoint);
        return NULL;
    }
    owner->checkpoint = checkpoint;
    self = (struct checkpoint_object *)PyType_GenericAlloc(type, 0);
    if (self == NULL)
        gptoss_python_owner_release(owner);
    else
        self->owner = owner;
    return (PyObject *)self;
}

static void deallocate(PyObject *self) {
    gptoss_python_owner_release(((struct checkpoint_object *)self)->owner);
    PyTypeObject *type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type);
}

/* files() -> [(path, bytes), ...]. */
static PyObject *list_files(PyObject *self, PyObject *unused) {
    (void)unused;
    const struct gptoss_checkpoint *checkpoint = checkpoint_of(self);
    size_t count = gptoss_checkpoint_num_files(checkpoint);
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list != NULL && i < count; i++) {
        uint64_t num_bytes = 0;
        const char *file = gptoss_checkpoint_file(checkpoint, i, &num_bytes);
        PyObject *item =
            Py_BuildValue("(NK)", PyUnicode_DecodeFSDefault(file), (unsigned long long)num_bytes);
        if (item == NULL || PyList_SetItem(list, (Py_ssize_t)i, item) != 0)
            Py_CLEAR(list);
    }
    return list;
}

/* tensors() -> [(name, format, shape, num_bytes or None, file, file_offset), ...]. */
static PyObject *list_tensors(PyObject *self, PyObject *unused) {
    (void)unused;
    const struct gptoss_checkpoint *checkpoint = checkpoint_of(self);
    size_t count = gptoss_checkpoint_num_tensors(checkpoint);
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list != NULL && i < count; i++) {
        const struct gptoss_tensor *tensor = gptoss_checkpoint_tensor(checkpoint, i);
        PyObject *num_bytes = tensor->is_opaque && tensor->num_bytes == 0
                                  ? Py_NewRef(Py_None)
                                  : PyLong_FromUnsignedLongLong(tensor->num_bytes);
        PyObject *item = Py_BuildValue("(NsNNNK)", gptoss_python_text(tensor->name), tensor->format,
                                       gptoss_python_shape(tensor->shape, tensor->num_dims),
                                       num_bytes, PyUnicode_DecodeFSDefault(tensor->file),
                                       (unsigned long long)tensor->file_offset);
        if (item == NULL || PyList_SetItem(list, (Py_ssize_t)i, item) != 0)
            Py_CLEAR(list);
    }
    return list;
}

/* ---- metadata ---- */

static const char *const type_names[] = {
    [GPTOSS_GGUF_UINT8] = "u8",    [GPTOSS_GGUF_INT8] = "i8",    [GPTOSS_GGUF_UINT16] = "u16",
    [GPTOSS_GGUF_INT16] = "i16",   [GPTOSS_GGUF_UINT32] = "u32", [GPTOSS_GGUF_INT32] = "i32",
    [GPTOSS_GGUF_FLOAT32] = "f32", [GPTOSS_GGUF_BOOL] = "bool",  [GPTOSS_GGUF_STRING] = "str",
    [GPTOSS_GGUF_UINT64] = "u64",  [GPTOSS_GGUF_INT64] = "i64",  [GPTOSS_GGUF_FLOAT64] = "f64"};

PyObject *gptoss_python_metadata(const struct gptoss_checkpoint *checkpoint) {
    size_t count = gptoss_checkpoint_num_values(checkpoint);
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list != NULL && i < count; i++) {
        const struct gptoss_gguf_value *value = gptoss_checkpoint_value(checkpoint, i);
        PyObject *length =
            value->is_array ? PyLong_FromUnsignedLongLong(value->num_elements) : Py_NewRef(Py_None);
        PyObject *item =
            Py_BuildValue("(NsNK)", gptoss_python_text(value->key), type_names[value->type], length,
                          (unsigned long long)value->file_offset);
        if (item == NULL || PyList_SetItem(list, (Py_ssize_t)i, item) != 0)
            Py_CLEAR(list);
    }
    return list;
}

/* The text at *at, which moves behind it. The parser has checked the lengths. */
static PyObject *take_text(const uint8_t **at) {
    uint64_t length = 0;
    for (int i = 7; i >= 0; i--)
        length = length << 8 | (*at)[i];
    const char *text = (const char *)*at + 8;
    *at += 8 + length;
    return PyUnicode_DecodeUTF8(text, (Py_ssize_t)length, "surrogateescape");
}

static PyObject *text_list(const struct gptoss_gguf_value *value) {
    const uint8_t *at = value->data;
    PyObject *list = PyList_New((Py_ssize_t)value->num_elements);
    for (uint64_t i = 0; list != NULL && i < value->num_elements; i++) {
        PyObject *text = take_text(&at);
        if (text == NULL || PyList_SetItem(list, (Py_ssize_t)i, text) != 0)
            Py_CLEAR(list);
    }
    return list;
}

PyObject *gptoss_python_metadata_value(PyTypeObject *view_type, struct gptoss_python_owner *owner,
                                       const struct gptoss_checkpoint *checkpoint,
                                       PyObject *argument) {
    Py_ssize_t index = PyNumber_AsSsize_t(argument, PyExc_IndexError);
    if (index == -1 && PyErr_Occurred())
        return NULL;
    const struct gptoss_gguf_value *value =
        index < 0 ? NULL : gptoss_checkpoint_value(checkpoint, (size_t)index);
    if (value == NULL)
        return PyErr_Format(PyExc_IndexError, "there is no metadata value %zd", index);
    if (value->type == GPTOSS_GGUF_STRING) {
        const uint8_t *at = value->data;
        return value->is_array ? text_list(value) : take_text(&at);
    }
    struct gptoss_python_array array = {GPTOSS_DTYPE_U8, 1, {0}, {0}, (void *)value->data};
    array.shape[0] = (Py_ssize_t)value->num_bytes;
    gptoss_python_array_pack(&array);
    return gptoss_python_view(view_type, owner, &array);
}

static PyObject *list_metadata(PyObject *self, PyObject *unused) {
    (void)unused;
    return gptoss_python_metadata(checkpoint_of(self));
}

static PyObject *metadata_value(PyObject *self, PyObject *index) {
    struct gptoss_python_state *state = PyType_GetModuleState(Py_TYPE(self));
    return gptoss_python_metadata_value(state->array_view_type,
                                        ((struct checkpoint_object *)self)->owner,
                                        checkpoint_of(self), index);
}

static PyObject *get_version(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLong(gptoss_checkpoint_gguf_version(checkpoint_of(self)));
}

static PyMethodDef methods[] = {
    {"files", list_files, METH_NOARGS, NULL},
    {"tensors", list_tensors, METH_NOARGS, NULL},
    {"metadata", list_metadata, METH_NOARGS, NULL},
    {"metadata_value", metadata_value, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef attributes[] = {
    {"gguf_version", get_version, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "The tables of a checkpoint's files."},
    {Py_tp_new, new_checkpoint},
    {Py_tp_dealloc, deallocate},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {0, NULL},
};

PyType_Spec gptoss_python_checkpoint_spec = {
    .name = "gptoss._core.Checkpoint",
    .basicsize = sizeof(struct checkpoint_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};
