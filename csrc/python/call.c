#include "platform/clock.h"
#include "python/binding.h"

/* Often enough that Ctrl-C is answered within 100 ms, seldom enough that taking the GIL costs
 * nothing: another Python thread may hold it for its whole switch interval of 5 ms. */
#define POLL_INTERVAL_NS 20000000

bool gptoss_python_call_begin(struct gptoss_python_call *call, PyObject *progress,
                              struct gptoss_python_owner *model) {
    return gptoss_python_call_begin_both(call, progress, model, NULL);
}

bool gptoss_python_call_begin_both(struct gptoss_python_call *call, PyObject *progress,
                                   struct gptoss_python_owner *first,
                                   struct gptoss_python_owner *second) {
    call->models[0] = first;
    call->models[1] = second;
    for (int i = 0; i < 2; i++) {
        if (call->models[i] != NULL &&
            atomic_load(&call->models[i]->callback_thread) == PyThread_get_thread_ident()) {
            gptoss_python_raise_as("StateError",
                                   "the model is in use by the call that runs this code");
            return false;
        }
    }
    call->progress = progress;
    call->raised = false;
    call->last_done = UINT64_MAX;
    call->last_poll_ns = gptoss_clock_nanoseconds();
    call->thread = PyEval_SaveThread();
    return true;
}

/* Notes which thread runs a callback while the call has its turns; 0: none. */
static void set_callback_thread(const struct gptoss_python_call *call, unsigned long thread) {
    for (int i = 0; i < 2; i++)
        if (call->models[i] != NULL)
            atomic_store(&call->models[i]->callback_thread, thread);
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
    if (has_turn)
        set_callback_thread(call, PyThread_get_thread_ident());
    call->raised = run_callbacks(call, has_news, done, total);
    if (has_turn)
        set_callback_thread(call, 0);
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
