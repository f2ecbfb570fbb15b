#include "python/binding.h"

/* The one table from status to exception class. */
static const char *class_of(enum gptoss_status status) {
    switch (status) {
    case GPTOSS_ERROR_ARGUMENT: return "ArgumentError";
    case GPTOSS_ERROR_MEMORY: return "OutOfMemoryError";
    case GPTOSS_ERROR_IO: return "FileError";
    case GPTOSS_ERROR_FORMAT: return "FormatError";
    case GPTOSS_ERROR_UNSUPPORTED: return "UnsupportedError";
    case GPTOSS_ERROR_CONTEXT: return "ContextError";
    case GPTOSS_ERROR_NUMERIC: return "NumericError";
    case GPTOSS_ERROR_STATE: return "StateError";
    case GPTOSS_ERROR_DEVICE: return "DeviceError";
    case GPTOSS_OK:
    case GPTOSS_ERROR_INTERRUPTED:
        break; /* not errors of their own: a callback's exception is raised instead */
    }
    return "Error";
}

PyObject *gptoss_python_text(const char *text) {
    if (text[0] == '\0')
        return Py_NewRef(Py_None);
    return PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "replace");
}

static PyObject *number_or_none(int64_t number) {
    return number < 0 ? Py_NewRef(Py_None) : PyLong_FromLongLong(number);
}

/* Steals value; NULL passes through as the failure it is. */
static bool set_item(PyObject *dict, const char *key, PyObject *value) {
    bool done = value != NULL && PyDict_SetItemString(dict, key, value) == 0;
    Py_XDECREF(value);
    return done;
}

static bool set_parts(PyObject *parts, const struct gptoss_error *error) {
    PyObject *file =
        error->file[0] == '\0' ? Py_NewRef(Py_None) : PyUnicode_DecodeFSDefault(error->file);
    if (!set_item(parts, "file", file))
        return false;
    if (!set_item(parts, "tensor", gptoss_python_text(error->tensor)))
        return false;
    if (!set_item(parts, "offset", number_or_none(error->offset)))
        return false;
    if (!set_item(parts, "expected", gptoss_python_text(error->expected)))
        return false;
    if (!set_item(parts, "found", gptoss_python_text(error->found)))
        return false;
    if (error->status == GPTOSS_ERROR_CONTEXT) {
        return set_item(parts, "max_context", number_or_none(error->limit)) &&
               set_item(parts, "requested", number_or_none(error->requested));
    }
    if (error->status == GPTOSS_ERROR_IO && error->system_errno != 0) {
        return set_item(parts, "errno", PyLong_FromLong(error->system_errno));
    }
    return true;
}

/* Imported when needed: the module gptoss.errors needs nothing of the extension, and no reference
 * is kept. */
static PyObject *error_class(const char *name) {
    PyObject *module = PyImport_ImportModule("gptoss.errors");
    if (module == NULL)
        return NULL;
    PyObject *class = PyObject_GetAttrString(module, name);
    Py_DECREF(module);
    return class;
}

PyObject *gptoss_python_raise(const struct gptoss_error *error) {
    PyObject *arguments = NULL, *parts = NULL, *exception = NULL;
    const char *message =
        error->message[0] == '\0' ? gptoss_status_name(error->status) : error->message;
    PyObject *class = error_class(class_of(error->status));
    if (class == NULL)
        goto cleanup;
    arguments = Py_BuildValue("(N)", gptoss_python_text(message));
    parts = PyDict_New();
    if (arguments == NULL || parts == NULL || !set_parts(parts, error))
        goto cleanup;
    exception = PyObject_Call(class, arguments, parts);
    if (exception != NULL)
        PyErr_SetObject(class, exception);
cleanup:
    Py_XDECREF(class);
    Py_XDECREF(arguments);
    Py_XDECREF(parts);
    Py_XDECREF(exception);
    return NULL;
}

PyObject *gptoss_python_raise_as(const char *class_name, const char *format, ...) {
    va_list values;
    va_start(values, format);
    PyObject *message = PyUnicode_FromFormatV(format, values);
    va_end(values);
    PyObject *class = message == NULL ? NULL : error_class(class_name);
    if (class != NULL)
        PyErr_SetObject(class, message);
    Py_XDECREF(class);
    Py_XDECREF(message);
    return NULL;
}
