/* gptoss._core: the module itself and what needs no model. */
#include "platform/cpu_cores.h"
#include "python/binding.h"

static PyObject *version(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyUnicode_FromString(gptoss_version());
}

static PyObject *list_isas(size_t count, const char *(*name)(size_t), bool (*available)(size_t)) {
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list != NULL && i < count; i++) {
        PyObject *item = Py_BuildValue("(sO)", name(i), available(i) ? Py_True : Py_False);
        if (item == NULL || PyList_SetItem(list, (Py_ssize_t)i, item) != 0)
            Py_CLEAR(list);
    }
    return list;
}

/* isas() -> [(name, available), ...], best last: those of precision fp32. */
static PyObject *isas(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return list_isas(gptoss_num_isas(), gptoss_isa_name, gptoss_isa_available);
}

/* bf16_isas(): the same of precision bf16. */
static PyObject *bf16_isas(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return list_isas(gptoss_num_bf16_isas(), gptoss_bf16_isa_name, gptoss_bf16_isa_available);
}

/* vulkan_devices() -> [(name, kind, memory_bytes), ...] in the order of their indices. */
static PyObject *vulkan_devices(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    struct gptoss_vulkan_device_info devices[32];
    struct gptoss_error error;
    enum gptoss_status status;
    size_t count = 0;
    Py_BEGIN_ALLOW_THREADS;
    status = gptoss_list_vulkan_devices(devices, 32, &count, &error);
    Py_END_ALLOW_THREADS;
    if (status != GPTOSS_OK)
        return gptoss_python_raise(&error);
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list != NULL && i < count; i++) {
        PyObject *item =
            Py_BuildValue("(NsK)", gptoss_python_text(devices[i].name), devices[i].kind,
                          (unsigned long long)devices[i].memory_bytes);
        if (item == NULL || PyList_SetItem(list, (Py_ssize_t)i, item) != 0)
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *cpu_features(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    size_t count = gptoss_num_cpu_features();
    PyObject *features = PyDict_New();
    for (size_t i = 0; features != NULL && i < count; i++) {
        bool available = false;
        const char *name = gptoss_cpu_feature(i, &available);
        if (PyDict_SetItemString(features, name, available ? Py_True : Py_False) != 0)
            Py_CLEAR(features);
    }
    return features;
}

static PyObject *usable_cpus(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyLong_FromLong(gptoss_usable_cpus());
}

static PyObject *usable_cores(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyLong_FromLong(gptoss_usable_cores());
}

/* count_cores(root, usable): for tests; usable is a writable buffer of one byte a CPU. */
static PyObject *count_cores(PyObject *module, PyObject *arguments) {
    (void)module;
    const char *root;
    Py_buffer usable;
    if (!PyArg_ParseTuple(arguments, "sw*:count_cores", &root, &usable))
        return NULL;
    int num_cpus = usable.len < GPTOSS_MAX_CPUS ? (int)usable.len : GPTOSS_MAX_CPUS;
    int num_cores = gptoss_count_cores(root, usable.buf, num_cpus);
    PyBuffer_Release(&usable);
    return PyLong_FromLong(num_cores);
}

static PyObject *set_hook(uint64_t (*hook)(uint64_t n), PyObject *argument) {
    unsigned long long n = PyLong_AsUnsignedLongLong(argument);
    if (n == (unsigned long long)-1 && PyErr_Occurred())
        return NULL;
    return PyLong_FromUnsignedLongLong(hook(n));
}

static PyObject *fail_allocation(PyObject *module, PyObject *argument) {
    (void)module;
    return set_hook(gptoss_allocator_fail_at, argument);
}

static PyObject *lose_vulkan_device(PyObject *module, PyObject *argument) {
    (void)module;
    return set_hook(gptoss_vulkan_lose_at, argument);
}

static PyMethodDef functions[] = {
    {"version", version, METH_NOARGS, NULL},
    {"isas", isas, METH_NOARGS, NULL},
    {"bf16_isas", bf16_isas, METH_NOARGS, NULL},
    {"vulkan_devices", vulkan_devices, METH_NOARGS, NULL},
    {"cpu_features", cpu_features, METH_NOARGS, NULL},
    {"usable_cpus", usable_cpus, METH_NOARGS, NULL},
    {"usable_cores", usable_cores, METH_NOARGS, NULL},
    {"count_cores", count_cores, METH_VARARGS, NULL},
    {"fail_allocation", fail_allocation, METH_O, NULL},
    {"lose_vulkan_device", lose_vulkan_device, METH_O, NULL},
    {"forward", gptoss_python_forward, METH_VARARGS, NULL},
    {"sample", gptoss_python_sample, METH_VARARGS, NULL},
    {"top_logprobs", gptoss_python_top_logprobs, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject *add_type(PyObject *module, PyType_Spec *spec) {
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (type != NULL && PyModule_AddType(module, (PyTypeObject *)type) != 0)
        Py_CLEAR(type);
    return (PyTypeObject *)type;
}

static int execute(PyObject *module) {
    struct gptoss_python_state *state = PyModule_GetState(module);
    state->array_view_type = add_type(module, &gptoss_python_array_view_spec);
    if (state->array_view_type == NULL)
        return -1;
    state->checkpoint_type = add_type(module, &gptoss_python_checkpoint_spec);
    if (state->checkpoint_type == NULL)
        return -1;
    state->model_type = add_type(module, &gptoss_python_model_spec);
    if (state->model_type == NULL)
        return -1;
    state->generator_type = add_type(module, &gptoss_python_generator_spec);
    if (state->generator_type == NULL)
        return -1;
    if (gptoss_python_add_formats(module) != 0)
        return -1;
    return gptoss_python_add_kernels(module);
}

static int traverse(PyObject *module, visitproc visit, void *arg) {
    struct gptoss_python_state *state = PyModule_GetState(module);
    Py_VISIT(state->array_view_type);
    Py_VISIT(state->checkpoint_type);
    Py_VISIT(state->model_type);
    Py_VISIT(state->generator_type);
    return 0;
}

static int clear(PyObject *module) {
    struct gptoss_python_state *state = PyModule_GetState(module);
    Py_CLEAR(state->array_view_type);
    Py_CLEAR(state->checkpoint_type);
    Py_CLEAR(state->model_type);
    Py_CLEAR(state->generator_type);
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "gptoss._core",
    .m_doc = "The engine, as gptoss wraps it. Not a public interface.",
    .m_size = sizeof(struct gptoss_python_state),
    .m_methods = functions,
    .m_slots = slots,
    .m_traverse = traverse,
    .m_clear = clear,
};

PyMODINIT_FUNC PyInit__core(void);
PyMODINIT_FUNC PyInit__core(void) {
    return PyModuleDef_Init(&definition);
}
