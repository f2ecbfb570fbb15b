/* _core.Generator: a handle on one sequence. The Python class gptoss.Generator is what people use.
 */
#include "platform/allocator.h"
#include "python/binding.h"

struct generator_object {
    PyObject_HEAD struct gptoss_python_owner
        *owner;               /* NULL once closed; looked at and changed only while busy */
    atomic_ulong busy_thread; /* the thread that is inside a method, 0 for none */
};

/* Marks the generator busy; StateError if it is in use. Every success is followed by leave(). */
static bool occupy(PyObject *self) {
    unsigned long nobody = 0, here = PyThread_get_thread_ident();
    if (atomic_compare_exchange_strong(&((struct generator_object *)self)->busy_thread, &nobody,
                                       here))
        return true;
    gptoss_python_raise_as("StateError", "the Generator is in use by %s",
                           nobody == here ? "the call that runs this code" : "another thread");
    return false;
}

static void leave(PyObject *self) {
    atomic_store(&((struct generator_object *)self)->busy_thread, 0);
}

/* Marks the generator busy and gives its C handle; NULL with StateError if it is in use or closed.
 * Every success is followed by leave(). */
static struct gptoss_generator *enter(PyObject *self) {
    if (!occupy(self))
        return NULL;
    struct gptoss_python_owner *owner = ((struct generator_object *)self)->owner;
    if (owner != NULL)
        return owner->generator;
    leave(self);
    gptoss_python_raise_as("StateError", "the Generator is closed");
    return NULL;
}

/* Wraps generator, which it takes over, in a new object. */
static PyObject *wrap(PyTypeObject *type, struct gptoss_generator *generator,
                      struct gptoss_python_owner *model) {
    struct gptoss_python_owner *owner = gptoss_python_owner_create(NULL, generator, model);
    if (owner == NULL)
        return NULL;
    struct generator_object *self = (struct generator_object *)PyType_GenericAlloc(type, 0);
    if (self == NULL) {
        gptoss_python_owner_release(owner);
        return NULL;
    }
    self->owner = owner;
    atomic_init(&self->busy_thread, 0);
    return (PyObject *)self;
}

static PyObject *new_generator(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    static char *names[] = {"model", "max_context", "kv_dtype", "block_size", NULL};
    struct gptoss_python_state *state = PyType_GetModuleState(type);
    PyObject *model;
    long long max_context;
    const char *kv_dtype;
    struct gptoss_generator_options options = {0};
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "O!Lsi:Generator", names,
                                     state->model_type, &model, &max_context, &kv_dtype,
                                     &options.block_size)) {
        return NULL;
    }
    options.max_context = max_context;
    options.kv_dtype = strcmp(kv_dtype, "f32") == 0 ? GPTOSS_DTYPE_F32 : GPTOSS_DTYPE_F16;
    struct gptoss_python_owner *owner = gptoss_python_model_owner(model);
    if (owner == NULL)
        return NULL;
    struct gptoss_error error;
    struct gptoss_generator *generator = NULL;
    PyThreadState *thread = PyEval_SaveThread();
    enum gptoss_status status = gptoss_generator_create(owner->model, &options, &generator, &error);
    PyEval_RestoreThread(thread);
    PyObject *self =
        status == GPTOSS_OK ? wrap(type, generator, owner) : gptoss_python_raise(&error);
    gptoss_python_owner_release(owner);
    return self;
}

static void deallocate(PyObject *self) {
    gptoss_python_owner_release(((struct generator_object *)self)->owner);
    PyTypeObject *type = Py_TYPE(self);
    PyObject_Free(self);
    Py_DECREF(type);
}

/* close(defer): as the model's. */
static PyObject *close_generator(PyObject *self, PyObject *argument) {
    struct generator_object *object = (struct generator_object *)self;
    int defer = PyObject_IsTrue(argument);
    if (defer < 0 || !occupy(self))
        return NULL;
    struct gptoss_python_owner *owner = object->owner;
    size_t num_views = defer || owner == NULL ? 0 : atomic_load(&owner->num_views);
    if (num_views == 0)
        object->owner = NULL;
    leave(self);
    if (num_views > 0) {
        return gptoss_python_raise_as(
            "InUseError", "cannot close the Generator: %zu array%s of it %s alive", num_views,
            num_views == 1 ? "" : "s", num_views == 1 ? "is" : "are");
    }
    gptoss_python_owner_release(owner);
    return Py_NewRef(Py_None);
}

static PyObject *feed(PyObject *self, const int32_t *tokens, size_t num_tokens, float *all_logits,
                      PyObject *progress) {
    struct gptoss_generator *generator = enter(self);
    if (generator == NULL)
        return NULL;
    struct gptoss_error error;
    struct gptoss_python_call call;
    if (!gptoss_python_call_begin(&call, progress,
                                  ((struct generator_object *)self)->owner->parent)) {
        leave(self);
        return NULL;
    }
    enum gptoss_status status = gptoss_generator_prefill(generator, tokens, num_tokens, all_logits,
                                                         gptoss_python_poll, &call, &error);
    leave(self);
    return gptoss_python_call_end(&call, status, &error);
}

/* prefill(tokens, all_logits, progress): all_logits is None or a writable float32 buffer of
 * (tokens, vocab). */
static PyObject *prefill(PyObject *self, PyObject *arguments) {
    PyObject *object, *all_logits, *progress, *result = NULL;
    if (!PyArg_ParseTuple(arguments, "OOO:prefill", &object, &all_logits, &progress))
        return NULL;
    if (!gptoss_python_progress(progress, &progress))
        return NULL;
    int32_t *tokens;
    size_t num_tokens;
    if (!gptoss_python_tokens(object, &tokens, &num_tokens))
        return NULL;
    Py_buffer buffer = {0};
    if (all_logits != Py_None) {
        if (PyObject_GetBuffer(all_logits, &buffer, PyBUF_WRITABLE) != 0)
            goto cleanup;
        struct gptoss_generator *generator = enter(self);
        if (generator == NULL)
            goto cleanup;
        int32_t vocab_size = gptoss_model_config(gptoss_generator_model(generator))->vocab_size;
        leave(self);
        if ((size_t)buffer.len / sizeof(float) / (size_t)vocab_size < num_tokens) {
            PyErr_Format(PyExc_ValueError, "all_logits is too small for %zu tokens", num_tokens);
            goto cleanup;
        }
    }
    result = feed(self, tokens, num_tokens, buffer.buf, progress);
cleanup:
    if (buffer.obj != NULL)
        PyBuffer_Release(&buffer);
    gptoss_free(tokens);
    return result;
}

/* ---- scoring ---- */

/* The arrays of gptoss_scores, in its order. */
struct outs {
    Py_buffer buffers[6];
    struct gptoss_scores scores;
};

static void release_outs(struct outs *outs) {
    for (int i = 0; i < 6; i++)
        if (outs->buffers[i].obj != NULL)
            PyBuffer_Release(&outs->buffers[i]);
}

/* Each object is None or a writable buffer of an element a token. */
static bool take_outs(PyObject *tuple, size_t num_tokens, struct outs *outs) {
    static const size_t element_bytes[6] = {sizeof(double), sizeof(int32_t), sizeof(double),
                                            sizeof(double), sizeof(double),  sizeof(uint8_t)};
    if (PyTuple_Size(tuple) != 6) {
        PyErr_SetString(PyExc_ValueError, "outs must be six");
        return false;
    }
    for (int i = 0; i < 6; i++) {
        PyObject *object = PyTuple_GetItem(tuple, i);
        if (object == Py_None)
            continue;
        if (PyObject_GetBuffer(object, &outs->buffers[i], PyBUF_WRITABLE) != 0)
            return false;
        if ((size_t)outs->buffers[i].len / element_bytes[i] < num_tokens) {
            PyErr_Format(PyExc_ValueError, "out %d is too small for %zu tokens", i, num_tokens);
            return false;
        }
    }
    outs->scores = (struct gptoss_scores){
        .logprobs = outs->buffers[0].buf,
        .ranks = outs->buffers[1].buf,
        .entropies = outs->buffers[2].buf,
        .reference_logprobs = outs->buffers[3].buf,
        .divergences = outs->buffers[4].buf,
        .same_top = outs->buffers[5].buf,
    };
    return true;
}

static PyObject *run_score(PyObject *self, PyObject *other, const int32_t *tokens,
                           size_t num_tokens, const int32_t *targets,
                           const struct gptoss_scores *scores, PyObject *progress) {
    struct gptoss_generator *reference = NULL, *generator = enter(self);
    if (generator == NULL)
        return NULL;
    if (other != NULL) {
        reference = enter(other);
        if (reference == NULL) {
            leave(self);
            return NULL;
        }
    }
    struct gptoss_error error;
    struct gptoss_python_call call;
    struct gptoss_python_owner *first = ((struct generator_object *)self)->owner->parent, *second;
    second = other == NULL ? NULL : ((struct generator_object *)other)->owner->parent;
    bool begun = gptoss_python_call_begin_both(&call, progress, first, second);
    enum gptoss_status status = GPTOSS_OK;
    if (begun)
        status = gptoss_generator_score(generator, reference, tokens, num_tokens, targets, scores,
                                        gptoss_python_poll, &call, &error);
    leave(self);
    if (other != NULL)
        leave(other);
    return begun ? gptoss_python_call_end(&call, status, &error) : NULL;
}

/* score(tokens, targets, reference, outs, progress): targets and reference may be None. */
static PyObject *score(PyObject *self, PyObject *arguments) {
    PyObject *object, *aims, *reference, *tuple, *progress, *result = NULL;
    int32_t *tokens = NULL, *targets = NULL;
    size_t num_tokens, num_targets;
    struct outs outs = {0};
    if (!PyArg_ParseTuple(arguments, "OOOO!O:score", &object, &aims, &reference, &PyTuple_Type,
                          &tuple, &progress) ||
        !gptoss_python_progress(progress, &progress))
        return NULL;
    if (reference != Py_None && Py_TYPE(reference) != Py_TYPE(self)) {
        PyErr_SetString(PyExc_TypeError, "the reference is no Generator");
        return NULL;
    }
    if (!gptoss_python_tokens(object, &tokens, &num_tokens) ||
        (aims != Py_None && !gptoss_python_tokens(aims, &targets, &num_targets)))
        goto cleanup;
    if (targets != NULL && num_targets != num_tokens) {
        PyErr_Format(PyExc_ValueError, "%zu targets for %zu tokens", num_targets, num_tokens);
        goto cleanup;
    }
    if (take_outs(tuple, num_tokens, &outs))
        result = run_score(self, reference == Py_None ? NULL : reference, tokens, num_tokens,
                           targets, &outs.scores, progress);
cleanup:
    release_outs(&outs);
    gptoss_free(tokens);
    gptoss_free(targets);
    return result;
}

static PyObject *step(PyObject *self, PyObject *argument) {
    int overflow;
    PyObject *integer = PyNumber_Index(argument);
    if (integer == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_TypeError))
            return NULL;
        PyErr_Clear();
        return gptoss_python_raise_as("ArgumentError", "a token is an integer, not %R", argument);
    }
    long long value = PyLong_AsLongLongAndOverflow(integer, &overflow);
    Py_DECREF(integer);
    if (overflow != 0 || value < INT32_MIN || value > INT32_MAX) {
        return gptoss_python_raise_as("ArgumentError", "%R is no token id", argument);
    }
    int32_t token = (int32_t)value;
    return feed(self, &token, 1, NULL, NULL);
}

/* look_ahead(tokens) */
static PyObject *look_ahead(PyObject *self, PyObject *argument) {
    int32_t *tokens;
    size_t num_tokens;
    if (!gptoss_python_tokens(argument, &tokens, &num_tokens))
        return NULL;
    PyObject *result = NULL;
    struct gptoss_generator *generator = enter(self);
    if (generator == NULL)
        goto cleanup;
    struct gptoss_error error;
    struct gptoss_python_call call;
    if (!gptoss_python_call_begin(&call, NULL, ((struct generator_object *)self)->owner->parent)) {
        leave(self);
        goto cleanup;
    }
    enum gptoss_status status = gptoss_generator_look_ahead(generator, tokens, num_tokens,
                                                            gptoss_python_poll, &call, &error);
    leave(self);
    result = gptoss_python_call_end(&call, status, &error);
cleanup:
    gptoss_free(tokens);
    return result;
}

/* run_ahead(token, num_tokens, temperature, min_p, seed) -> [(token, logprob), ...] */
static PyObject *run_ahead(PyObject *self, PyObject *arguments) {
    int token, num_tokens;
    struct gptoss_sampling sampling = {.top_p = 1, .repetition_penalty = 1};
    unsigned long long seed;
    if (!PyArg_ParseTuple(arguments, "iiffK:run_ahead", &token, &num_tokens, &sampling.temperature,
                          &sampling.min_p, &seed))
        return NULL;
    sampling.seed = seed;
    struct gptoss_generator *generator = enter(self);
    if (generator == NULL)
        return NULL;
    struct gptoss_error error;
    struct gptoss_python_call call;
    if (!gptoss_python_call_begin(&call, NULL, ((struct generator_object *)self)->owner->parent)) {
        leave(self);
        return NULL;
    }
    enum gptoss_status status = gptoss_generator_run_ahead(generator, token, num_tokens, &sampling,
                                                           gptoss_python_poll, &call, &error);
    PyObject *result = gptoss_python_call_end(&call, status, &error);
    if (result != NULL) {
        const int32_t *tokens;
        const float *logprobs;
        size_t count = gptoss_generator_drawn_ahead(generator, &tokens, &logprobs);
        Py_DECREF(result);
        result = gptoss_python_logprobs(tokens, logprobs, (Py_ssize_t)count);
    }
    leave(self);
    return result;
}

/* The token looked ahead at as the next one, or None. */
static PyObject *get_next_ahead(PyObject *self, void *unused) {
    (void)unused;
    struct gptoss_generator *generator = enter(self);
    if (generator == NULL)
        return NULL;
    const int32_t *tokens;
    PyObject *result = gptoss_generator_ahead(generator, &tokens) > 0 ? PyLong_FromLong(tokens[0])
                                                                      : Py_NewRef(Py_None);
    leave(self);
    return result;
}

static PyObject *get_runs_ahead(PyObject *self, void *unused) {
    (void)unused;
    struct gptoss_generator *generator = enter(self);
    if (generator == NULL)
        return NULL;
    bool runs_ahead = gptoss_generator_runs_ahead(generator);
    leave(self);
    return PyBool_FromLong(runs_ahead);
}

static PyObject *view(PyObject *self, const struct gptoss_python_array *array) {
    struct gptoss_python_state *state = PyType_GetModuleState(Py_TYPE(self));
    return gptoss_python_view(state->array_view_type, ((struct generator_object *)self)->owner,
                              array);
}

static PyObject *view_logits(PyObject *self, PyObject *unused) {
    (void)unused;
    struct gptoss_generator *generator = enter(self);
    if (generator == NULL)
        return NULL;
    struct gptoss_python_array array = {.dtype = GPTOSS_DTYPE_F32, .num_dims = 1};
    array.shape[0] = gptoss_model_config(gptoss_generator_model(generator))->vocab_size;
    array.data = (void *)gptoss_generator_logits(generator);
    gptoss_python_array_pack(&array);
    PyObject *result = view(self, &array);
    leave(self);
    return result;
}

/* kv(layer) -> (keys, values, first position, end position). */
static PyObject *view_kv(PyObject *self, PyObject *argument) {
    long layer = PyLong_AsLong(argument);
    if (layer == -1 && PyErr_Occurred())
        return NULL;
    struct gptoss_generator *generator = enter(self);
    if (generator == NULL)
        return NULL;
    struct gptoss_error error;
    struct gptoss_kv_view kv;
    PyObject *result = NULL;
    if (layer < 0 || layer > INT32_MAX)
        layer = INT32_MAX;
    /* A GPU's rows are read back at its turn, which a pass has whose callback wants the GIL. */
    PyThreadState *thread = PyEval_SaveThread();
    enum gptoss_status status = gptoss_generator_kv(generator, (int32_t)layer, &kv, &error);
    PyEval_RestoreThread(thread);
    if (status != GPTOSS_OK) {
        gptoss_python_raise(&error);
    } else {
        const struct gptoss_config *config = gptoss_model_config(gptoss_generator_model(generator));
        struct gptoss_python_array array = {
            .dtype = gptoss_generator_kv_dtype(generator),
            .num_dims = 3,
            .shape = {config->num_kv_heads, (Py_ssize_t)(kv.end_position - kv.first_position),
                      config->head_dim},
            .strides = {(Py_ssize_t)kv.head_stride_bytes, (Py_ssize_t)kv.row_bytes},
        };
        array.strides[2] = (Py_ssize_t)gptoss_dtype_bytes(array.dtype);
        size_t skipped_bytes = (size_t)kv.first_position * kv.row_bytes;
        array.data = (char *)kv.keys + skipped_bytes;
        PyObject *keys = view(self, &array);
        array.data = (char *)kv.values + skipped_bytes;
        PyObject *values = keys == NULL ? NULL : view(self, &array);
        result = values == NULL
                     ? NULL
                     : Py_BuildValue("(OOLL)", keys, values, (long long)kv.first_position,
                                     (long long)kv.end_position);
        Py_XDECREF(keys);
        Py_XDECREF(values);
    }
    leave(self);
    return result;
}

/* The tokens as the bytes of an int32 array: a copy. */
static PyObject *get_tokens(PyObject *self, PyObject *unused) {
    (void)unused;
    struct gptoss_generator *generator = enter(self);
    if (generator == NULL)
        return NULL;
    Py_ssize_t num_bytes =
        (Py_ssize_t)gptoss_generator_position(generator) * (Py_ssize_t)sizeof(int32_t);
    PyObject *result =
        PyBytes_FromStringAndSize((const char *)gptoss_generator_tokens(generator), num_bytes);
    leave(self);
    return result;
}

/* rewind(position, progress) */
static PyObject *rewind_generator(PyObject *self, PyObject *arguments) {
    long long position;
    PyObject *progress;
    if (!PyArg_ParseTuple(arguments, "LO:rewind", &position, &progress))
        return NULL;
    if (!gptoss_python_progress(progress, &progress))
        return NULL;
    struct gptoss_generator *generator = enter(self);
    if (generator == NULL)
        return NULL;
    struct gptoss_error error;
    struct gptoss_python_call call;
    if (!gptoss_python_call_begin(&call, progress,
                                  ((struct generator_object *)self)->owner->parent)) {
        leave(self);
        return NULL;
    }
    enum gptoss_status status =
        gptoss_generator_rewind(generator, position, gptoss_python_poll, &call, &error);
    leave(self);
    return gptoss_python_call_end(&call, status, &error);
}

static PyObject *reset(PyObject *self, PyObject *unused) {
    (void)unused;
    struct gptoss_generator *generator = enter(self);
    if (generator == NULL)
        return NULL;
    gptoss_generator_reset(generator);
    leave(self);
    return Py_NewRef(Py_None);
}

static PyObject *fork_generator(PyObject *self, PyObject *unused) {
    (void)unused;
    struct gptoss_generator *generator = enter(self), *copy = NULL;
    if (generator == NULL)
        return NULL;
    struct gptoss_error error;
    PyThreadState *thread = PyEval_SaveThread();
    enum gptoss_status status = gptoss_generator_fork(generator, &copy, &error);
    PyEval_RestoreThread(thread);
    struct gptoss_python_owner *model = ((struct generator_object *)self)->owner->parent;
    PyObject *result =
        status == GPTOSS_OK ? wrap(Py_TYPE(self), copy, model) : gptoss_python_raise(&error);
    leave(self);
    return result;
}

/* capture(mask): one byte per tap, or None. */
static PyObject *capture(PyObject *self, PyObject *argument) {
    char *mask = NULL;
    Py_ssize_t num_bytes = 0;
    if (argument != Py_None && PyBytes_AsStringAndSize(argument, &mask, &num_bytes) != 0)
        return NULL;
    struct gptoss_generator *generator = enter(self);
    if (generator == NULL)
        return NULL;
    PyObject *result = NULL;
    struct gptoss_error error;
    size_t num_taps = gptoss_model_num_taps(gptoss_generator_model(generator));
    if (mask != NULL && (size_t)num_bytes != num_taps) {
        PyErr_Format(PyExc_ValueError, "the mask has %zd bytes for %zu taps", num_bytes, num_taps);
    } else if (gptoss_generator_capture(generator, (const uint8_t *)mask, &error) != GPTOSS_OK) {
        gptoss_python_raise(&error);
    } else {
        result = Py_NewRef(Py_None);
    }
    leave(self);
    return result;
}

/* take_tap(index) -> the last call's rows as an ArrayView that owns them, or None if there are
 * none. */
static PyObject *take_tap(PyObject *self, PyObject *argument) {
    Py_ssize_t index = PyNumber_AsSsize_t(argument, PyExc_IndexError);
    if (index == -1 && PyErr_Occurred())
        return NULL;
    struct gptoss_generator *generator = enter(self);
    if (generator == NULL)
        return NULL;
    const struct gptoss_model *model = gptoss_generator_model(generator);
    PyObject *result = NULL;
    if (index < 0 || (size_t)index >= gptoss_model_num_taps(model)) {
        PyErr_Format(PyExc_IndexError, "there is no tap %zd", index);
        leave(self);
        return NULL;
    }
    struct gptoss_tap tap;
    int64_t num_rows = 0;
    gptoss_model_tap(model, (size_t)index, &tap);
    void *rows = gptoss_generator_take_tap(generator, (size_t)index, &num_rows);
    leave(self);
    if (rows == NULL)
        return Py_NewRef(Py_None);
    struct gptoss_python_array array = {
        .dtype = tap.dtype, .num_dims = tap.num_dims + 1, .data = rows};
    array.shape[0] = (Py_ssize_t)num_rows;
    for (int d = 0; d < tap.num_dims; d++)
        array.shape[d + 1] = (Py_ssize_t)tap.shape[d];
    gptoss_python_array_pack(&array);
    struct gptoss_python_state *state = PyType_GetModuleState(Py_TYPE(self));
    result = gptoss_python_view(state->array_view_type, NULL, &array);
    return result;
}

static PyObject *get_memory(PyObject *self, PyObject *unused) {
    (void)unused;
    struct gptoss_generator *generator = enter(self);
    if (generator == NULL)
        return NULL;
    uint64_t reserved_bytes, held_bytes;
    gptoss_generator_memory(generator, &reserved_bytes, &held_bytes);
    leave(self);
    return Py_BuildValue("{s:K,s:K}", "reserved", (unsigned long long)reserved_bytes, "held",
                         (unsigned long long)held_bytes);
}

static PyObject *get_position(PyObject *self, void *unused) {
    (void)unused;
    struct gptoss_generator *generator = enter(self);
    if (generator == NULL)
        return NULL;
    PyObject *result = PyLong_FromLongLong(gptoss_generator_position(generator));
    leave(self);
    return result;
}

static PyObject *get_max_context(PyObject *self, void *unused) {
    (void)unused;
    struct gptoss_generator *generator = enter(self);
    if (generator == NULL)
        return NULL;
    PyObject *result = PyLong_FromLongLong(gptoss_generator_max_context(generator));
    leave(self);
    return result;
}

static PyObject *get_has_logits(PyObject *self, void *unused) {
    (void)unused;
    struct gptoss_generator *generator = enter(self);
    if (generator == NULL)
        return NULL;
    PyObject *result = PyBool_FromLong(gptoss_generator_has_logits(generator));
    leave(self);
    return result;
}

static PyMethodDef methods[] = {
    {"close", close_generator, METH_O, NULL},   {"prefill", prefill, METH_VARARGS, NULL},
    {"score", score, METH_VARARGS, NULL},       {"step", step, METH_O, NULL},
    {"look_ahead", look_ahead, METH_O, NULL},   {"run_ahead", run_ahead, METH_VARARGS, NULL},
    {"logits", view_logits, METH_NOARGS, NULL}, {"kv", view_kv, METH_O, NULL},
    {"tokens", get_tokens, METH_NOARGS, NULL},  {"rewind", rewind_generator, METH_VARARGS, NULL},
    {"reset", reset, METH_NOARGS, NULL},        {"fork", fork_generator, METH_NOARGS, NULL},
    {"capture", capture, METH_O, NULL},         {"take_tap", take_tap, METH_O, NULL},
    {"memory", get_memory, METH_NOARGS, NULL},  {NULL, NULL, 0, NULL},
};

static PyGetSetDef attributes[] = {
    {"position", get_position, NULL, NULL, NULL},
    {"max_context", get_max_context, NULL, NULL, NULL},
    {"has_logits", get_has_logits, NULL, NULL, NULL},
    {"next_ahead", get_next_ahead, NULL, NULL, NULL},
    {"runs_ahead", get_runs_ahead, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "A handle on one sequence."},
    {Py_tp_new, new_generator},
    {Py_tp_dealloc, deallocate},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {0, NULL},
};

PyType_Spec gptoss_python_generator_spec = {
    .name = "gptoss._core.Generator",
    .basicsize = sizeof(struct generator_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = slots,
};

/* ---- many at once ---- */

/* What gptoss_forward takes, and the objects it is taken from. */
struct batch {
    PyObject *objects; /* a tuple of our own */
    Py_ssize_t num_entered;
    struct gptoss_generator **generators; /* [size of objects] */
    int32_t *tokens, *counts;             /* as they came */
    size_t *num_tokens;                   /* the counts, checked */
    size_t num_all_tokens, num_counts;
};

static void leave_batch(struct batch *batch) {
    while (batch->num_entered > 0)
        leave(PyTuple_GetItem(batch->objects, --batch->num_entered));
}

static void clear_batch(struct batch *batch) {
    Py_XDECREF(batch->objects);
    gptoss_free(batch->generators);
    gptoss_free(batch->tokens);
    gptoss_free(batch->counts);
    gptoss_free(batch->num_tokens);
}

/* Whether there is a count for each generator and a token for each count. */
static bool check_counts(struct batch *batch) {
    size_t num_generators = (size_t)PyTuple_Size(batch->objects), sum = 0;
    batch->generators = gptoss_allocate(num_generators, sizeof(void *));
    batch->num_tokens = gptoss_allocate(num_generators, sizeof *batch->num_tokens);
    if (batch->generators == NULL || batch->num_tokens == NULL) {
        gptoss_python_raise_as("OutOfMemoryError", "cannot allocate memory for %zu generators",
                               num_generators);
        return false;
    }
    bool valid = batch->num_counts == num_generators;
    for (size_t i = 0; valid && i < num_generators; i++) {
        valid = batch->counts[i] >= 0;
        batch->num_tokens[i] = (size_t)batch->counts[i];
        sum += batch->num_tokens[i];
    }
    if (!valid || sum != batch->num_all_tokens)
        PyErr_SetString(PyExc_ValueError, "counts do not fit generators and tokens");
    return valid && sum == batch->num_all_tokens;
}

static bool enter_batch(struct batch *batch, PyTypeObject *type) {
    for (Py_ssize_t i = 0; i < PyTuple_Size(batch->objects); i++) {
        PyObject *object = PyTuple_GetItem(batch->objects, i);
        if (!PyObject_TypeCheck(object, type)) {
            PyErr_Format(PyExc_TypeError, "object %zd is no Generator", i);
            return false;
        }
        batch->generators[i] = enter(object);
        if (batch->generators[i] == NULL)
            return false;
        batch->num_entered++;
    }
    return true;
}

PyObject *gptoss_python_forward(PyObject *module, PyObject *arguments) {
    struct gptoss_python_state *state = PyModule_GetState(module);
    PyObject *generators, *tokens, *counts, *progress, *result = NULL;
    struct batch batch = {0};
    if (!PyArg_ParseTuple(arguments, "OOOO:forward", &generators, &tokens, &counts, &progress))
        return NULL;
    if (!gptoss_python_progress(progress, &progress))
        return NULL;
    batch.objects = PySequence_Tuple(generators);
    if (batch.objects == NULL ||
        !gptoss_python_tokens(tokens, &batch.tokens, &batch.num_all_tokens) ||
        !gptoss_python_tokens(counts, &batch.counts, &batch.num_counts) || !check_counts(&batch) ||
        !enter_batch(&batch, state->generator_type))
        goto cleanup;
    struct gptoss_python_owner *model = NULL;
    if (batch.num_entered > 0)
        model = ((struct generator_object *)PyTuple_GetItem(batch.objects, 0))->owner->parent;
    struct gptoss_error error;
    struct gptoss_python_call call;
    if (!gptoss_python_call_begin(&call, progress, model))
        goto cleanup;
    enum gptoss_status status =
        gptoss_forward(batch.generators, (size_t)batch.num_entered, batch.tokens, batch.num_tokens,
                       gptoss_python_poll, &call, &error);
    leave_batch(&batch);
    result = gptoss_python_call_end(&call, status, &error);
cleanup:
    leave_batch(&batch);
    clear_batch(&batch);
    return result;
}
