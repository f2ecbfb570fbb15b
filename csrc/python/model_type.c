/* _core.Model: a handle on an open model. The Python class gptoss.Model is what people use. */
#include "python/binding.h"

struct model_object {
    PyObject_HEAD struct gptoss_python_owner *owner; /* NULL once closed */
};

struct gptoss_python_owner *gptoss_python_model_owner(PyObject *self) {
    struct model_object *object = (struct model_object *)self;
    struct gptoss_python_owner *owner;
    GPTOSS_PYTHON_BEGIN_LOCKED(self);
    owner = object->owner;
    if (owner != NULL)
        gptoss_python_owner_retain(owner);
    GPTOSS_PYTHON_END_LOCKED();
    if (owner == NULL)
        gptoss_python_raise_as("StateError", "the model is closed");
    return owner;
}

#define MAX_LIMITS 64

/* A tuple of byte counts, or NULL. */
static bool read_limits(PyObject *tuple, uint64_t *limits_out, size_t *num_out) {
    Py_ssize_t count = tuple != NULL ? PyTuple_Size(tuple) : 0;
    if (count > MAX_LIMITS) {
        gptoss_python_raise_as("ArgumentError", "gpu_memory has %zd numbers, which is too many",
                               count);
        return false;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        limits_out[i] = PyLong_AsUnsignedLongLong(PyTuple_GetItem(tuple, i));
        if (PyErr_Occurred())
            return false;
    }
    *num_out = (size_t)count;
    return true;
}

static PyObject *new_model(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"path",     "device",     "isa",      "precision",
                            "threads",  "read_files", "progress", "profile",
                            "adapters", "gpu_memory", NULL};
    PyObject *path, *progress = NULL, *tuple = NULL, *limits = NULL;
    uint64_t gpu_memory[MAX_LIMITS];
    struct gptoss_model_options options = {.poll = gptoss_python_poll};
    int read_files = 0, profile = 0;
    if (!PyArg_ParseTupleAndKeywords(
            arguments, keywords, "O&|zzzipOiO!O!:Model", names, PyUnicode_FSConverter, &path,
            &options.device, &options.isa, &options.precision, &options.num_threads, &read_files,
            &progress, &profile, &PyTuple_Type, &tuple, &PyTuple_Type, &limits)) {
        return NULL;
    }
    struct gptoss_python_call call;
    struct gptoss_error error;
    struct gptoss_model *model = NULL;
    struct model_object *self = NULL;
    struct gptoss_python_adapters adapters;
    if (!gptoss_python_adapters(tuple, &adapters) || !gptoss_python_progress(progress, &progress) ||
        !read_limits(limits, gpu_memory, &options.num_gpu_memory))
        goto cleanup;
    options.gpu_memory = gpu_memory;
    options.adapters = adapters.items;
    options.num_adapters = adapters.count;
    options.read_files = read_files != 0;
    options.profile = profile != 0;
    options.profile_counts = profile == 2;
    options.poll_user = &call;
    gptoss_python_call_begin(&call, progress, NULL);
    enum gptoss_status status = gptoss_model_open(PyBytes_AsString(path), &options, &model, &error);
    PyObject *opened = gptoss_python_call_end(&call, status, &error);
    if (opened == NULL) {
        gptoss_model_release(model);
        goto cleanup;
    }
    Py_DECREF(opened);
    struct gptoss_python_owner *owner = gptoss_python_owner_create(model, NULL, NULL);
    if (owner == NULL)
        goto cleanup;
    self = (struct model_object *)PyType_GenericAlloc(type, 0);
    if (self == NULL) {
        gptoss_python_owner_release(owner);
    } else {
        self->owner = owner;
    }
cleanup:
    gptoss_python_adapters_clear(&adapters);
    Py_DECREF(path);
    return (PyObject *)self;
}

static void deallocate(PyObject *self) {
    gptoss_python_owner_release(((struct model_object *)self)->owner);
    PyTypeObject *type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type);
}

/* close(defer): without defer, live views and generators are an error; with it they keep the memory
 * until they go. */
static PyObject *close_model(PyObject *self, PyObject *argument) {
    struct model_object *object = (struct model_object *)self;
    int defer = PyObject_IsTrue(argument);
    if (defer < 0)
        return NULL;
    struct gptoss_python_owner *owner;
    size_t num_views = 0, num_generators = 0;
    GPTOSS_PYTHON_BEGIN_LOCKED(self);
    owner = object->owner;
    if (owner != NULL && !defer) {
        num_views = atomic_load(&owner->num_views);
        num_generators = atomic_load(&owner->num_generators);
    }
    if (num_views + num_generators == 0)
        object->owner = NULL;
    GPTOSS_PYTHON_END_LOCKED();
    if (num_views + num_generators > 0) {
        return gptoss_python_raise_as(
            "InUseError",
            "cannot close the model: %zu array%s of it and %zu Generator%s "
            "are alive",
            num_views, num_views == 1 ? "" : "s", num_generators, num_generators == 1 ? "" : "s");
    }
    gptoss_python_owner_release(owner);
    return Py_NewRef(Py_None);
}

static PyObject *layer_types(const struct gptoss_config *config) {
    PyObject *types = PyTuple_New(config->num_layers);
    for (int32_t layer = 0; types != NULL && layer < config->num_layers; layer++) {
        PyObject *name = PyUnicode_FromString(config->layer_is_sliding[layer] ? "sliding_attention"
                                                                              : "full_attention");
        if (name == NULL || PyTuple_SetItem(types, layer, name) != 0)
            Py_CLEAR(types);
    }
    return types;
}

static const char *const rope_scalings[] = {
    [GPTOSS_ROPE_PLAIN] = "plain",   [GPTOSS_ROPE_YARN] = "yarn",
    [GPTOSS_ROPE_NONE] = "none",     [GPTOSS_ROPE_LINEAR] = "linear",
    [GPTOSS_ROPE_LLAMA3] = "llama3", [GPTOSS_ROPE_DIVISORS] = "divisors",
};

static PyObject *get_config(PyObject *self, PyObject *unused) {
    (void)unused;
    struct gptoss_python_owner *owner = gptoss_python_model_owner(self);
    if (owner == NULL)
        return NULL;
    const struct gptoss_config *c = gptoss_model_config(owner->model);
    PyObject *result = Py_BuildValue(
        "{s:s,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:i,s:O,s:O,s:O,s:f,s:f,s:f,s:f,s:s,s:d,s:d,"
        "s:d,s:d,s:d,s:i,s:O,s:d,s:d,s:O,s:N}",
        "architecture", c->architecture, "num_layers", c->num_layers, "hidden_size", c->hidden_size,
        "intermediate_size", c->intermediate_size, "vocab_size", c->vocab_size, "num_heads",
        c->num_heads, "num_kv_heads", c->num_kv_heads, "head_dim", c->head_dim, "num_experts",
        c->num_experts, "experts_per_token", c->experts_per_token, "sliding_window",
        c->sliding_window, "max_positions", c->max_positions, "attention_bias",
        c->attention_bias ? Py_True : Py_False, "mlp_bias", c->mlp_bias ? Py_True : Py_False,
        "tied_embeddings", c->tied_embeddings ? Py_True : Py_False, "rms_norm_eps", c->rms_norm_eps,
        "layer_norm_eps", c->layer_norm_eps, "swiglu_limit", c->swiglu_limit, "swiglu_alpha",
        c->swiglu_alpha, "rope_scaling", rope_scalings[c->rope_scaling], "rope_theta",
        c->rope_theta, "rope_factor", c->rope_factor, "rope_beta_fast", c->rope_beta_fast,
        "rope_beta_slow", c->rope_beta_slow, "rope_attention_factor", c->rope_attention_factor,
        "rope_original_positions", c->rope_original_positions, "rope_truncate",
        c->rope_truncate ? Py_True : Py_False, "rope_low_frequency_factor",
        c->rope_low_frequency_factor, "rope_high_frequency_factor", c->rope_high_frequency_factor,
        "rope_neighbours", c->rope_neighbours ? Py_True : Py_False, "layer_types", layer_types(c));
    gptoss_python_owner_release(owner);
    return result;
}

PyObject *gptoss_python_shape(const int64_t *shape, int num_dims) {
    PyObject *tuple = PyTuple_New(num_dims);
    for (int d = 0; tuple != NULL && d < num_dims; d++) {
        PyObject *size = PyLong_FromLongLong(shape[d]);
        if (size == NULL || PyTuple_SetItem(tuple, d, size) != 0)
            Py_CLEAR(tuple);
    }
    return tuple;
}

/* tensors() -> [(name, dtype, shape, num_bytes, file, file_offset, weight_dtype), ...] in the
 * engine's order. Shapes count elements. */
static PyObject *list_tensors(PyObject *self, PyObject *unused) {
    (void)unused;
    struct gptoss_python_owner *owner = gptoss_python_model_owner(self);
    if (owner == NULL)
        return NULL;
    size_t count = gptoss_model_num_tensors(owner->model);
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list != NULL && i < count; i++) {
        const struct gptoss_tensor *tensor = gptoss_model_tensor(owner->model, i);
        PyObject *item = Py_BuildValue(
            "(NsNKNKs)", gptoss_python_text(tensor->name), gptoss_dtype_name(tensor->dtype),
            gptoss_python_shape(tensor->shape, tensor->num_dims),
            (unsigned long long)tensor->num_bytes, PyUnicode_DecodeFSDefault(tensor->file),
            (unsigned long long)tensor->file_offset, gptoss_dtype_name(tensor->weight_dtype));
        if (item == NULL || PyList_SetItem(list, (Py_ssize_t)i, item) != 0)
            Py_CLEAR(list);
    }
    gptoss_python_owner_release(owner);
    return list;
}

/* tensor(index) -> a view of its shape; of a block format, of its bytes in a row. */
static PyObject *view_tensor(PyObject *self, PyObject *argument) {
    Py_ssize_t index = PyNumber_AsSsize_t(argument, PyExc_IndexError);
    if (index == -1 && PyErr_Occurred())
        return NULL;
    struct gptoss_python_owner *owner = gptoss_python_model_owner(self);
    if (owner == NULL)
        return NULL;
    PyObject *view = NULL;
    if (index < 0 || (size_t)index >= gptoss_model_num_tensors(owner->model)) {
        PyErr_Format(PyExc_IndexError, "there is no tensor %zd", index);
    } else {
        const struct gptoss_tensor *tensor = gptoss_model_tensor(owner->model, (size_t)index);
        struct gptoss_python_array array = {
            tensor->dtype, tensor->num_dims, {0}, {0}, (void *)tensor->data};
        for (int d = 0; d < array.num_dims; d++)
            array.shape[d] = (Py_ssize_t)tensor->shape[d];
        if (gptoss_dtype_bytes(tensor->dtype) == 0) { /* blocks: their bytes in a row */
            array.dtype = GPTOSS_DTYPE_U8;
            array.num_dims = 1;
            array.shape[0] = (Py_ssize_t)tensor->num_bytes;
        }
        gptoss_python_array_pack(&array);
        struct gptoss_python_state *state = PyType_GetModuleState(Py_TYPE(self));
        view = gptoss_python_view(state->array_view_type, owner, &array);
    }
    gptoss_python_owner_release(owner);
    return view;
}

static PyObject *list_metadata(PyObject *self, PyObject *unused) {
    (void)unused;
    struct gptoss_python_owner *owner = gptoss_python_model_owner(self);
    if (owner == NULL)
        return NULL;
    PyObject *list = gptoss_python_metadata(gptoss_model_checkpoint(owner->model));
    gptoss_python_owner_release(owner);
    return list;
}

static PyObject *metadata_value(PyObject *self, PyObject *index) {
    struct gptoss_python_owner *owner = gptoss_python_model_owner(self);
    if (owner == NULL)
        return NULL;
    struct gptoss_python_state *state = PyType_GetModuleState(Py_TYPE(self));
    PyObject *value = gptoss_python_metadata_value(state->array_view_type, owner,
                                                   gptoss_model_checkpoint(owner->model), index);
    gptoss_python_owner_release(owner);
    return value;
}

/* Points one output of decode_expert at buffer. The size must be the part's own, else the engine
 * would write beyond. */
static bool choose_part(const char *part, const struct gptoss_config *config,
                        const Py_buffer *buffer, struct gptoss_expert_out *out) {
    size_t hidden = (size_t)config->hidden_size, intermediate = (size_t)config->intermediate_size;
    const struct {
        const char *name;
        float **slot;
        size_t size;
    } parts[] = {
        {"gate", &out->gate, intermediate * hidden}, {"up", &out->up, intermediate * hidden},
        {"down", &out->down, hidden * intermediate}, {"gate_bias", &out->gate_bias, intermediate},
        {"up_bias", &out->up_bias, intermediate},    {"down_bias", &out->down_bias, hidden},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (strcmp(part, parts[i].name) != 0)
            continue;
        if ((size_t)buffer->len != parts[i].size * sizeof(float)) {
            PyErr_Format(PyExc_ValueError, "%s needs %zu float32 values", part, parts[i].size);
            return false;
        }
        *parts[i].slot = buffer->buf;
        return true;
    }
    PyErr_Format(PyExc_ValueError, "an expert has no part %s", part);
    return false;
}

/* decode_expert(layer, expert, part, out): out is a writable float32 buffer of the part's size. */
static PyObject *decode_expert(PyObject *self, PyObject *arguments) {
    int layer, expert;
    const char *part;
    Py_buffer buffer;
    if (!PyArg_ParseTuple(arguments, "iisw*:decode_expert", &layer, &expert, &part, &buffer))
        return NULL;
    PyObject *result = NULL;
    struct gptoss_expert_out out = {0};
    struct gptoss_error error;
    struct gptoss_python_owner *owner = gptoss_python_model_owner(self);
    if (owner == NULL || !choose_part(part, gptoss_model_config(owner->model), &buffer, &out))
        goto cleanup;
    struct gptoss_python_call call;
    gptoss_python_call_begin(&call, NULL, NULL);
    enum gptoss_status status =
        gptoss_model_decode_expert(owner->model, layer, expert, &out, &error);
    result = gptoss_python_call_end(&call, status, &error);
cleanup:
    gptoss_python_owner_release(owner);
    PyBuffer_Release(&buffer);
    return result;
}

static PyObject *verify(PyObject *self, PyObject *progress) {
    if (!gptoss_python_progress(progress, &progress))
        return NULL;
    struct gptoss_python_owner *owner = gptoss_python_model_owner(self);
    if (owner == NULL)
        return NULL;
    struct gptoss_error error;
    struct gptoss_python_call call;
    gptoss_python_call_begin(&call, progress, NULL);
    enum gptoss_status status =
        gptoss_model_verify(owner->model, gptoss_python_poll, &call, &error);
    PyObject *result = gptoss_python_call_end(&call, status, &error);
    gptoss_python_owner_release(owner);
    return result;
}

static PyObject *get_memory(PyObject *self, PyObject *unused) {
    (void)unused;
    struct gptoss_python_owner *owner = gptoss_python_model_owner(self);
    if (owner == NULL)
        return NULL;
    struct gptoss_model_memory memory;
    gptoss_model_memory(owner->model, &memory);
    gptoss_python_owner_release(owner);
    return Py_BuildValue("{s:K,s:K,s:K,s:K}", "mapped", (unsigned long long)memory.mapped_bytes,
                         "read", (unsigned long long)memory.read_bytes, "heap",
                         (unsigned long long)memory.heap_bytes, "device",
                         (unsigned long long)memory.device_bytes);
}

/* shares() -> [(device, holds, weight_bytes, cache_bytes, activation_bytes), ...] */
static PyObject *list_shares(PyObject *self, PyObject *unused) {
    (void)unused;
    struct gptoss_python_owner *owner = gptoss_python_model_owner(self);
    if (owner == NULL)
        return NULL;
    size_t count = gptoss_model_num_shares(owner->model);
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list != NULL && i < count; i++) {
        struct gptoss_share share;
        gptoss_model_share(owner->model, i, &share);
        PyObject *item = Py_BuildValue("(NsKKK)", gptoss_python_text(share.device), share.holds,
                                       (unsigned long long)share.weight_bytes,
                                       (unsigned long long)share.cache_bytes,
                                       (unsigned long long)share.activation_bytes);
        if (item == NULL || PyList_SetItem(list, (Py_ssize_t)i, item) != 0)
            Py_CLEAR(list);
    }
    gptoss_python_owner_release(owner);
    return list;
}

/* profile() -> [(name, calls, nanoseconds, rows, weight_bytes, kv_bytes, flops), ...], empty
 * without profile=True. */
static PyObject *get_profile(PyObject *self, PyObject *unused) {
    (void)unused;
    struct gptoss_python_owner *owner = gptoss_python_model_owner(self);
    if (owner == NULL)
        return NULL;
    size_t count = gptoss_model_num_profile_entries(owner->model);
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list != NULL && i < count; i++) {
        struct gptoss_profile_entry entry;
        gptoss_model_profile_entry(owner->model, i, &entry);
        PyObject *item =
            Py_BuildValue("(sKKKKKK)", entry.name, (unsigned long long)entry.num_calls,
                          (unsigned long long)entry.nanoseconds, (unsigned long long)entry.num_rows,
                          (unsigned long long)entry.weight_bytes,
                          (unsigned long long)entry.kv_bytes, (unsigned long long)entry.num_flops);
        if (item == NULL || PyList_SetItem(list, (Py_ssize_t)i, item) != 0)
            Py_CLEAR(list);
    }
    gptoss_python_owner_release(owner);
    return list;
}

static PyObject *reset_profile(PyObject *self, PyObject *unused) {
    (void)unused;
    struct gptoss_python_owner *owner = gptoss_python_model_owner(self);
    if (owner == NULL)
        return NULL;
    gptoss_model_reset_profile(owner->model);
    gptoss_python_owner_release(owner);
    return Py_NewRef(Py_None);
}

/* taps() -> [(name, dtype, shape of a row), ...]. */
static PyObject *list_taps(PyObject *self, PyObject *unused) {
    (void)unused;
    struct gptoss_python_owner *owner = gptoss_python_model_owner(self);
    if (owner == NULL)
        return NULL;
    size_t count = gptoss_model_num_taps(owner->model);
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list != NULL && i < count; i++) {
        struct gptoss_tap tap;
        gptoss_model_tap(owner->model, i, &tap);
        PyObject *item = Py_BuildValue("(ssN)", tap.name, gptoss_dtype_name(tap.dtype),
                                       gptoss_python_shape(tap.shape, tap.num_dims));
        if (item == NULL || PyList_SetItem(list, (Py_ssize_t)i, item) != 0)
            Py_CLEAR(list);
    }
    gptoss_python_owner_release(owner);
    return list;
}

static PyObject *get_device(PyObject *self, void *unused) {
    (void)unused;
    struct gptoss_python_owner *owner = gptoss_python_model_owner(self);
    if (owner == NULL)
        return NULL;
    PyObject *name = gptoss_python_text(gptoss_model_device(owner->model));
    gptoss_python_owner_release(owner);
    return name;
}

static PyObject *get_isa(PyObject *self, void *unused) {
    (void)unused;
    struct gptoss_python_owner *owner = gptoss_python_model_owner(self);
    if (owner == NULL)
        return NULL;
    PyObject *name = PyUnicode_FromString(gptoss_model_isa(owner->model));
    gptoss_python_owner_release(owner);
    return name;
}

static PyObject *get_precision(PyObject *self, void *unused) {
    (void)unused;
    struct gptoss_python_owner *owner = gptoss_python_model_owner(self);
    if (owner == NULL)
        return NULL;
    PyObject *name = PyUnicode_FromString(gptoss_model_precision(owner->model));
    gptoss_python_owner_release(owner);
    return name;
}

static PyObject *get_threads(PyObject *self, void *unused) {
    (void)unused;
    struct gptoss_python_owner *owner = gptoss_python_model_owner(self);
    if (owner == NULL)
        return NULL;
    PyObject *number = PyLong_FromLong(gptoss_model_num_threads(owner->model));
    gptoss_python_owner_release(owner);
    return number;
}

static PyObject *get_closed(PyObject *self, void *unused) {
    (void)unused;
    bool closed;
    GPTOSS_PYTHON_BEGIN_LOCKED(self);
    closed = ((struct model_object *)self)->owner == NULL;
    GPTOSS_PYTHON_END_LOCKED();
    return PyBool_FromLong(closed);
}

static PyMethodDef methods[] = {
    {"close", close_model, METH_O, NULL},
    {"config", get_config, METH_NOARGS, NULL},
    {"tensors", list_tensors, METH_NOARGS, NULL},
    {"tensor", view_tensor, METH_O, NULL},
    {"metadata", list_metadata, METH_NOARGS, NULL},
    {"metadata_value", metadata_value, METH_O, NULL},
    {"decode_expert", decode_expert, METH_VARARGS, NULL},
    {"verify", verify, METH_O, NULL},
    {"memory", get_memory, METH_NOARGS, NULL},
    {"shares", list_shares, METH_NOARGS, NULL},
    {"profile", get_profile, METH_NOARGS, NULL},
    {"reset_profile", reset_profile, METH_NOARGS, NULL},
    {"taps", list_taps, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef attributes[] = {
    {"device", get_device, NULL, NULL, NULL},       {"isa", get_isa, NULL, NULL, NULL},
    {"precision", get_precision, NULL, NULL, NULL}, {"threads", get_threads, NULL, NULL, NULL},
    {"closed", get_closed, NULL, NULL, NULL},       {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "A handle on an open model."},
    {Py_tp_new, new_model},
    {Py_tp_dealloc, deallocate},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {0, NULL},
};

PyType_Spec gptoss_python_model_spec = {
    .name = "gptoss._core.Model",
    .basicsize = sizeof(struct model_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};
