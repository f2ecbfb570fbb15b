/* The CPython binding: what its files share. Only csrc/python knows Python.
 *
 * Shape of every method: arguments to C values, hold what must live (an owner, the generator's busy
 * mark), drop the GIL, call gptoss.h, take it back, translate. Functions that return PyObject *
 * return NULL exactly when they have set an exception; those that return bool return false then.
 */
#ifndef GPTOSS_PYTHON_BINDING_H
#define GPTOSS_PYTHON_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "gptoss.h"

/* Types are heap types of one interpreter; found from an instance by
 * PyType_GetModuleState(Py_TYPE(self)). */
struct gptoss_python_state {
    PyTypeObject *array_view_type, *checkpoint_type, *model_type, *generator_type;
};

/* With the GIL a handle's pointer cannot change between a look and a retain; without it the object
 * is locked. */
#ifdef Py_GIL_DISABLED
#define GPTOSS_PYTHON_BEGIN_LOCKED(object) Py_BEGIN_CRITICAL_SECTION(object)
#define GPTOSS_PYTHON_END_LOCKED() Py_END_CRITICAL_SECTION()
#else
#define GPTOSS_PYTHON_BEGIN_LOCKED(object) {
#define GPTOSS_PYTHON_END_LOCKED() }
#endif

/* ---- errors.c ---- */

/* Raises the exception class that belongs to error->status, with its parts as attributes. NULL. */
PyObject *gptoss_python_raise(const struct gptoss_error *error);
/* Raises gptoss.errors.<class_name> with a message in PyUnicode_FromFormat's language. NULL. */
PyObject *gptoss_python_raise_as(const char *class_name, const char *format, ...);
/* A string of the engine, or None if it is empty. Bytes that are no UTF-8 become U+FFFD. */
PyObject *gptoss_python_text(const char *text);

/* ---- call.c ---- */

/* One call into the engine with the GIL dropped: begin, the call with gptoss_python_poll and this
 * as its user, end. */
struct gptoss_python_call {
    PyObject *progress; /* borrowed; NULL for none */
    /* Borrowed; NULL for a call that takes no turn on a model, or one turn alone. */
    struct gptoss_python_owner *models[2];
    PyThreadState *thread;
    uint64_t last_poll_ns, last_done;
    bool raised;
};
/* False with StateError, the GIL kept, if a callback of a call that has its turn on model asks for
 * another: it would wait for itself. */
bool gptoss_python_call_begin(struct gptoss_python_call *call, PyObject *progress,
                              struct gptoss_python_owner *model);
/* The same for a call that takes turns on two models. */
bool gptoss_python_call_begin_both(struct gptoss_python_call *call, PyObject *progress,
                                   struct gptoss_python_owner *first,
                                   struct gptoss_python_owner *second);
int gptoss_python_poll(void *call, uint64_t done, uint64_t total);
/* Takes the GIL back. NULL with an exception if status is a failure or a callback raised, else a
 * new None. */
PyObject *gptoss_python_call_end(struct gptoss_python_call *call, enum gptoss_status status,
                                 const struct gptoss_error *error);

/* ---- arguments.c ---- */

/* A sequence or one-dimensional array of integers as int32, in memory for gptoss_free. Only the
 * width is checked. */
bool gptoss_python_tokens(PyObject *object, int32_t **tokens_out, size_t *num_tokens_out);
/* None becomes NULL; anything else must be callable. Borrowed. */
bool gptoss_python_progress(PyObject *object, PyObject **progress_out);

/* ---- adapters.c ---- */

struct gptoss_python_adapters {
    struct gptoss_adapter *items; /* [count] */
    size_t count;
};
/* A tuple of (path in bytes, tuple of modules, tuple of factors), or NULL for none. Names stay
 * those of the tuple's strings. On failure, too, gptoss_python_adapters_clear frees what is held.
 */
bool gptoss_python_adapters(PyObject *tuple, struct gptoss_python_adapters *adapters_out);
void gptoss_python_adapters_clear(struct gptoss_python_adapters *adapters);

/* ---- owner.c ---- */

/* What views keep alive: a model, or a generator and through it its model. Views hold this and not
 * the Python object, because arrays take no part in garbage collection: a cycle through one could
 * never be collected. */
struct gptoss_python_owner {
    atomic_size_t num_references;
    atomic_size_t num_views;
    atomic_size_t num_generators;       /* of a model */
    atomic_ulong callback_thread;       /* of a model: the thread whose call, during its turn, runs
                                           a callback; 0 for none */
    struct gptoss_model *model;         /* NULL in a generator's owner */
    struct gptoss_generator *generator; /* NULL in a model's owner */
    struct gptoss_checkpoint *checkpoint; /* of a Checkpoint's owner, which has neither */
    struct gptoss_python_owner *parent;   /* the model's owner, in a generator's */
};
/* Takes over model or generator, one of them NULL or both; releases it on failure. One reference.
 * parent is retained. */
struct gptoss_python_owner *gptoss_python_owner_create(struct gptoss_model *model,
                                                       struct gptoss_generator *generator,
                                                       struct gptoss_python_owner *parent);
struct gptoss_python_owner *gptoss_python_owner_retain(struct gptoss_python_owner *owner);
void gptoss_python_owner_release(struct gptoss_python_owner *owner);

/* ---- array_view.c ---- */

struct gptoss_python_array {
    enum gptoss_dtype dtype;
    int num_dims;
    Py_ssize_t shape[GPTOSS_MAX_DIMS];
    Py_ssize_t strides[GPTOSS_MAX_DIMS]; /* bytes */
    void *data;
};
/* Row-major strides for dtype and shape. */
void gptoss_python_array_pack(struct gptoss_python_array *array);
/* A read-only view that retains owner and counts among its views; or, with owner NULL, a writable
 * one that takes over array->data and gives it to gptoss_free, on failure too. */
PyObject *gptoss_python_view(PyTypeObject *type, struct gptoss_python_owner *owner,
                             const struct gptoss_python_array *array);
extern PyType_Spec gptoss_python_array_view_spec;

/* ---- checkpoint_type.c ---- */

extern PyType_Spec gptoss_python_checkpoint_spec;
/* [(key, type, number of elements of an array or None, file_offset), ...]. */
PyObject *gptoss_python_metadata(const struct gptoss_checkpoint *checkpoint);
/* The value at an index: a text, bytes that are no UTF-8 as surrogates, or a list of such; of
 * numbers and booleans a view of their bytes. */
PyObject *gptoss_python_metadata_value(PyTypeObject *view_type, struct gptoss_python_owner *owner,
                                       const struct gptoss_checkpoint *checkpoint, PyObject *index);

/* ---- model_type.c, generator_type.c ---- */

/* (size, size, ...). */
PyObject *gptoss_python_shape(const int64_t *shape, int num_dims);

extern PyType_Spec gptoss_python_model_spec, gptoss_python_generator_spec;
/* The owner behind a _core.Model, retained; StateError after close. */
struct gptoss_python_owner *gptoss_python_model_owner(PyObject *model);
/* forward(generators, tokens, counts, progress): counts[i] tokens to generators[i], from one list.
 */
PyObject *gptoss_python_forward(PyObject *module, PyObject *arguments);

/* ---- sampling.c ---- */

PyObject *gptoss_python_sample(PyObject *module, PyObject *arguments);
PyObject *gptoss_python_top_logprobs(PyObject *module, PyObject *arguments);
/* [(token, logprob), ...] */
PyObject *gptoss_python_logprobs(const int32_t *tokens, const float *logprobs, Py_ssize_t count);

/* ---- formats.c ---- */

/* Adds the functions that encode and decode number formats. 0, or -1 with an exception. */
int gptoss_python_add_formats(PyObject *module);

/* ---- kernels.c ---- */

/* Adds the functions that list and test kernels. 0, or -1 with an exception. */
int gptoss_python_add_kernels(PyObject *module);
/* kernels_attention.c: those of the attention and elementwise kernels; called by the former. */
int gptoss_python_add_attention_kernels(PyObject *module);

#endif
