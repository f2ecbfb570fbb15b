#include "platform/clock.h"
#include "python/binding.h"

/* Often enough that Ctrl-C is answered within 100 ms, seldom enough that taking the GIL costs
 * nothing: another Python thread may hold it for its whole switch interval of 5 ms. */
#define POLL_INTERVAL_NS 20000000

bool gptoss_python_call_begin(struct gptoss_python_call *call, PyObject *progress,
                              struct gptoss_python_owner *model) {
    if (model != NULL && atomic_load(&model->callback_thread) == PyThread_get_thread_ident()) {
        gptoss_python_raise_as("StateError", "the model is in use by the call that runs this code");
        return false;
    }
    call->progress = progress;
    call->model = model;
    call->raised = false;
    call->last_done = UINT64_MAX;
    call->last_poll_ns = gptoss_clock_nanoseconds();
    call->thread = PyEval_SaveThread();
    return true;
}

/* Runs signal handlers and, with news, the progress callable. True if one of them raised. */
static bool run_callbacks(const struct gptoss_python_call *call, bool has_news, uint64_t done,
                          uint64_t total) {
    if (PyErr_CheckSignals() != 0)
        return true;
    if (!has_news)
        return false;
    PyObject *result = PyObject_CallFunction(call->progress, "KK", (unsigned long long)done,
                                             (unsigned long long)total);
    Py_XDECREF(result);
    return result == NULL;
}

int gptoss_python_poll(void *user, uint64_t done, uint64_t total) {
    struct gptoss_python_call *call = user;
    if (call->raised)
        return 1;
    bool has_turn = total > 0; /* else it is waiting for it */
    uint64_t now_ns = gptoss_clock_nanoseconds();
    bool has_news = call->progress != NULL && has_turn && done != call->last_done;
    if (!has_news && now_ns - call->last_poll_ns < POLL_INTERVAL_NS)
        return 0;
    call->last_poll_ns = now_ns;
    call->last_done = done;
    PyEval_RestoreThread(call->thread);
    if (call->model != NULL && has_turn)
        atomic_store(&call->model->callback_thread, PyThread_get_thread_ident());
    call->raised = run_callbacks(call, has_news, done, total);
    if (call->model != NULL && has_turn)
        atomic_store(&call->model->callback_thread, 0);
    call->thread = PyEval_SaveThread();
    return call->raised;
}

PyObject *gptoss_python_call_end(struct gptoss_python_call *call, enum gptoss_status status,
                                 const struct gptoss_error *error) {
    PyEval_RestoreThread(call->thread);
    if (call->raised)
        return NULL;
    if (status != GPTOSS_OK)
        return gptoss_python_raise(error);
    return Py_NewRef(Py_None);
}
