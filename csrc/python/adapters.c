#include "platform/allocator.h"
#include "python/binding.h"

void gptoss_python_adapters_clear(struct gptoss_python_adapters *adapters) {
    for (size_t i = 0; i < adapters->count; i++) {
        gptoss_free((void *)adapters->items[i].modules);
        gptoss_free((void *)adapters->items[i].factors);
    }
    gptoss_free(adapters->items);
}

static bool take_adapter(PyObject *tuple, struct gptoss_adapter *adapter) {
    PyObject *path, *modules, *factors;
    if (!PyArg_ParseTuple(tuple, "O!O!O!:adapter", &PyBytes_Type, &path, &PyTuple_Type, &modules,
                          &PyTuple_Type, &factors))
        return false;
    Py_ssize_t count = PyTuple_Size(modules);
    if (PyTuple_Size(factors) != count) {
        PyErr_SetString(PyExc_ValueError, "an adapter has a factor for each module");
        return false;
    }
    const char **names = gptoss_allocate((size_t)count, sizeof *names);
    float *numbers = gptoss_allocate((size_t)count, sizeof *numbers);
    adapter->path = PyBytes_AsString(path);
    adapter->num_modules = (size_t)count;
    adapter->modules = names;
    adapter->factors = numbers;
    if (names == NULL || numbers == NULL) {
        gptoss_python_raise_as("OutOfMemoryError", "cannot allocate memory for an adapter");
        return false;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        names[i] = PyUnicode_AsUTF8AndSize(PyTuple_GetItem(modules, i), NULL);
        double factor = PyFloat_AsDouble(PyTuple_GetItem(factors, i));
        numbers[i] = (float)factor;
        if (names[i] == NULL || PyErr_Occurred())
            return false;
    }
    return true;
}

bool gptoss_python_adapters(PyObject *tuple, struct gptoss_python_adapters *adapters_out) {
    size_t count = tuple == NULL ? 0 : (size_t)PyTuple_Size(tuple);
    *adapters_out = (struct gptoss_python_adapters){0};
    if (count == 0)
        return true;
    adapters_out->items = gptoss_allocate(count, sizeof *adapters_out->items);
    if (adapters_out->items == NULL) {
        gptoss_python_raise_as("OutOfMemoryError", "cannot allocate memory for %zu adapters",
                               count);
        return false;
    }
    adapters_out->count = count;
    for (size_t i = 0; i < count; i++) {
        PyObject *item = PyTuple_GetItem(tuple, (Py_ssize_t)i);
        if (!PyTuple_Check(item)) {
            PyErr_SetString(PyExc_TypeError, "an adapter is a tuple");
            return false;
        }
        if (!take_adapter(item, &adapters_out->items[i]))
            return false;
    }
    return true;
}
