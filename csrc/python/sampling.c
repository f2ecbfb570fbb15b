/* _core.sample and _core.top_logprobs: the engine's sampler on any logits. */
#include "cpu/kernels.h"
#include "engine/sampler.h"
#include "platform/allocator.h"
#include "python/binding.h"

/* The kernels of an instruction set that this machine has, of NULL the best; an exception if not.
 */
static const struct gptoss_kernels *select_kernels(const char *isa) {
    const struct gptoss_kernels *kernels = gptoss_kernels_select(isa);
    if (kernels == NULL)
        PyErr_Format(PyExc_ValueError, "no kernels for the instruction set %s", isa);
    return kernels;
}

/* sample(logits, history, temperature, top_k, top_p, min_p, repetition_penalty, frequency_penalty,
 * presence_penalty, seed, bias_tokens, bias_values, isa=None) -> (token, logprob); buffers of
 * float32 and int32, aligned. */
PyObject *gptoss_python_sample(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer logits, history, bias_tokens, bias_values;
    struct gptoss_sampling sampling = {0};
    unsigned long long seed;
    const char *isa = NULL;
    if (!PyArg_ParseTuple(arguments, "y*y*fifffffKy*y*|z:sample", &logits, &history,
                          &sampling.temperature, &sampling.top_k, &sampling.top_p, &sampling.min_p,
                          &sampling.repetition_penalty, &sampling.frequency_penalty,
                          &sampling.presence_penalty, &seed, &bias_tokens, &bias_values, &isa)) {
        return NULL;
    }
    PyObject *result = NULL;
    const struct gptoss_kernels *kernels = select_kernels(isa);
    if (kernels == NULL)
        goto cleanup;
    if (bias_values.len != bias_tokens.len) {
        gptoss_python_raise_as("ArgumentError", "as many logit bias values as tokens are needed");
        goto cleanup;
    }
    sampling.seed = seed;
    sampling.bias_tokens = bias_tokens.buf;
    sampling.bias_values = bias_values.buf;
    sampling.num_biases = (size_t)bias_tokens.len / sizeof(int32_t);
    int32_t token = 0;
    float logprob = 0.0f;
    struct gptoss_error error;
    PyThreadState *thread = PyEval_SaveThread();
    enum gptoss_status status = gptoss_sample_by(
        kernels, logits.buf, (size_t)logits.len / sizeof(float), &sampling, history.buf,
        (size_t)history.len / sizeof(int32_t), &token, &logprob, &error);
    PyEval_RestoreThread(thread);
    result = status == GPTOSS_OK ? Py_BuildValue("(id)", (int)token, (double)logprob)
                                 : gptoss_python_raise(&error);
cleanup:
    PyBuffer_Release(&logits);
    PyBuffer_Release(&history);
    PyBuffer_Release(&bias_tokens);
    PyBuffer_Release(&bias_values);
    return result;
}

PyObject *gptoss_python_logprobs(const int32_t *tokens, const float *logprobs, Py_ssize_t count) {
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list != NULL && i < count; i++) {
        PyObject *pair = Py_BuildValue("(id)", (int)tokens[i], (double)logprobs[i]);
        if (pair == NULL || PyList_SetItem(list, i, pair) != 0)
            Py_CLEAR(list);
    }
    return list;
}

/* top_logprobs(logits, k, isa=None) -> [(token, logprob), ...], best first. */
PyObject *gptoss_python_top_logprobs(PyObject *module, PyObject *arguments) {
    (void)module;
    Py_buffer logits;
    int k;
    const char *isa = NULL;
    if (!PyArg_ParseTuple(arguments, "y*i|z:top_logprobs", &logits, &k, &isa))
        return NULL;
    size_t vocab_size = (size_t)logits.len / sizeof(float);
    PyObject *result = NULL;
    int32_t *tokens = NULL;
    float *logprobs = NULL;
    const struct gptoss_kernels *kernels = select_kernels(isa);
    if (kernels == NULL)
        goto cleanup;
    if (k < 1 || (size_t)k > vocab_size) {
        gptoss_python_raise_as("ArgumentError", "%d alternatives of %zu tokens were asked for", k,
                               vocab_size);
        goto cleanup;
    }
    tokens = gptoss_allocate((size_t)k, sizeof *tokens);
    logprobs = gptoss_allocate((size_t)k, sizeof *logprobs);
    if (tokens == NULL || logprobs == NULL) {
        gptoss_python_raise_as("OutOfMemoryError", "cannot allocate memory for %d alternatives", k);
        goto cleanup;
    }
    struct gptoss_error error;
    PyThreadState *thread = PyEval_SaveThread();
    enum gptoss_status status = gptoss_top_logprobs_by(kernels, logits.buf, vocab_size, (size_t)k,
                                                       tokens, logprobs, &error);
    PyEval_RestoreThread(thread);
    result = status == GPTOSS_OK ? gptoss_python_logprobs(tokens, logprobs, k)
                                 : gptoss_python_raise(&error);
cleanup:
    PyBuffer_Release(&logits);
    gptoss_free(tokens);
    gptoss_free(logprobs);
    return result;
}
