/* The shortest way from a dict of arrays to compiled code: one call from CPython checks the inputs, makes the outputs and runs.
 *
 * A small model runs in a few microseconds, which is what as many calls through ctypes take. What does not fit here (lists,
 * copies, casts that are refused, shapes other than those prepared) gives None, and session.py deals with it. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>

#include "tcompile.h"

/* The head of NumPy's array object, in its C ABI since 1.0; abi.py compares what it says with NumPy's own answers. */
typedef struct array {
    PyObject_HEAD
    char *data;
    int rank;
    Py_ssize_t *extents;
    Py_ssize_t *strides;
    PyObject *base;
    PyObject *dtype;
    int flags;
} array;

enum { ROW_MAJOR = 0x1, ALIGNED = 0x100 };

/* A tensor as the runner was made for it. */
typedef struct tensor {
    PyObject *name, *dtype, *shape;
    Py_ssize_t *extents;
    int rank;
} tensor;

typedef struct runner {
    PyObject_HEAD
    tc_session *session;
    PyObject *array_type, *empty, *fail;
    Py_ssize_t input_count, output_count;
    tensor *tensors; /* inputs, then outputs */
    void **objects;  /* the arrays of a run, in that order */
} runner;

static void runner_dealloc(runner *self) {
    Py_ssize_t count = self->tensors == NULL ? 0 : self->input_count + self->output_count;
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_XDECREF(self->tensors[i].name);
        Py_XDECREF(self->tensors[i].dtype);
        Py_XDECREF(self->tensors[i].shape);
        PyMem_Free(self->tensors[i].extents);
    }
    PyMem_Free(self->tensors);
    PyMem_Free(self->objects);
    Py_XDECREF(self->array_type);
    Py_XDECREF(self->empty);
    Py_XDECREF(self->fail);
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

/* (name, dtype, shape). */
static int read_tensor(tensor *found, PyObject *given) {
    if (!PyArg_ParseTuple(given, "UOO!", &found->name, &found->dtype, &PyTuple_Type, &found->shape)) {
        *found = (tensor){0};
        return 0;
    }
    Py_INCREF(found->name);
    Py_INCREF(found->dtype);
    Py_INCREF(found->shape);
    found->rank = (int)PyTuple_GET_SIZE(found->shape);
    found->extents = PyMem_New(Py_ssize_t, found->rank + 1);
    if (found->extents == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    for (int k = 0; k < found->rank; k++) found->extents[k] = PyLong_AsSsize_t(PyTuple_GET_ITEM(found->shape, k));
    return !PyErr_Occurred();
}

static PyObject *runner_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    static char *names[] = {"session", "array_type", "empty", "fail", "inputs", "outputs", NULL};
    unsigned long long handle;
    PyObject *array_type, *empty, *fail, *inputs, *outputs;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "KOOOO!O!", names, &handle, &array_type, &empty, &fail, &PyTuple_Type, &inputs,
                                     &PyTuple_Type, &outputs))
        return NULL;
    runner *self = (runner *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    self->session = (tc_session *)(uintptr_t)handle;
    self->array_type = Py_NewRef(array_type);
    self->empty = Py_NewRef(empty);
    self->fail = Py_NewRef(fail);
    self->input_count = PyTuple_GET_SIZE(inputs);
    self->output_count = PyTuple_GET_SIZE(outputs);
    Py_ssize_t count = self->input_count + self->output_count;
    self->tensors = PyMem_Calloc((size_t)count + 1, sizeof *self->tensors);
    self->objects = PyMem_Calloc((size_t)count + 1, sizeof *self->objects);
    if (self->tensors == NULL || self->objects == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *given = i < self->input_count ? PyTuple_GET_ITEM(inputs, i) : PyTuple_GET_ITEM(outputs, i - self->input_count);
        if (read_tensor(&self->tensors[i], given)) continue;
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static int fits(const runner *self, const tensor *wanted, PyObject *given) {
    const array *found = (const array *)given;
    if ((PyObject *)Py_TYPE(given) != self->array_type || found->dtype != wanted->dtype || found->rank != wanted->rank) return 0;
    if ((found->flags & (ROW_MAJOR | ALIGNED)) != (ROW_MAJOR | ALIGNED)) return 0;
    for (int k = 0; k < wanted->rank; k++)
        if (found->extents[k] != wanted->extents[k]) return 0;
    return 1;
}

/* Holds the inputs; how many of them there are that fit. */
static Py_ssize_t take_inputs(runner *self, PyObject *inputs) {
    Py_ssize_t i = 0;
    for (; i < self->input_count; i++) {
        PyObject *given = PyDict_GetItemWithError(inputs, self->tensors[i].name);
        if (given == NULL || !fits(self, &self->tensors[i], given)) break;
        self->objects[i] = Py_NewRef(given);
    }
    return i;
}

static Py_ssize_t make_outputs(runner *self) {
    Py_ssize_t k = 0;
    for (; k < self->output_count; k++) {
        const tensor *wanted = &self->tensors[self->input_count + k];
        PyObject *arguments[] = {wanted->shape, wanted->dtype};
        PyObject *made = PyObject_Vectorcall(self->empty, arguments, 2, NULL);
        if (made == NULL) break;
        self->objects[self->input_count + k] = made;
    }
    return k;
}

static PyObject *named_outputs(const runner *self) {
    PyObject *found = PyDict_New();
    for (Py_ssize_t k = self->input_count; found != NULL && k < self->input_count + self->output_count; k++)
        if (PyDict_SetItem(found, self->tensors[k].name, (PyObject *)self->objects[k]) < 0) Py_CLEAR(found);
    return found;
}

static PyObject *run_on(runner *self) {
    int32_t status = tc_session_run(self->session, (const void *const *)self->objects, self->objects + self->input_count);
    if (PyErr_Occurred()) return NULL; /* a signal's */
    if (status == TC_OK) return named_outputs(self);
    PyObject *number = PyLong_FromLong(status);
    PyObject *raised = number == NULL ? NULL : PyObject_CallOneArg(self->fail, number);
    Py_XDECREF(number);
    return raised;
}

static PyObject *runner_run(runner *self, PyObject *inputs) {
    if (!PyDict_CheckExact(inputs) || PyDict_GET_SIZE(inputs) != self->input_count) Py_RETURN_NONE;
    Py_ssize_t taken = take_inputs(self, inputs), made = 0;
    PyObject *result = NULL;
    if (taken == self->input_count) {
        made = make_outputs(self);
        if (made == self->output_count) result = run_on(self);
    } else if (!PyErr_Occurred()) {
        result = Py_NewRef(Py_None);
    }
    for (Py_ssize_t i = 0; i < taken; i++) Py_DECREF((PyObject *)self->objects[i]);
    for (Py_ssize_t k = 0; k < made; k++) Py_DECREF((PyObject *)self->objects[self->input_count + k]);
    return result;
}

/* What the head of an array says: (data, rank, first extent, dtype, flags). For abi.py, which compares. */
static PyObject *describe(PyObject *module, PyObject *given) {
    const array *found = (const array *)given;
    (void)module;
    return Py_BuildValue("KinOi", (unsigned long long)(uintptr_t)found->data, found->rank, found->rank > 0 ? found->extents[0] : -1,
                         found->dtype, found->flags & (ROW_MAJOR | ALIGNED));
}

static PyMethodDef runner_methods[] = {
    {"run", (PyCFunction)runner_run, METH_O, "The outputs of a dict of arrays; None where these are not as prepared."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot runner_slots[] = {
    {Py_tp_new, (void *)runner_new},
    {Py_tp_dealloc, (void *)runner_dealloc},
    {Py_tp_methods, runner_methods},
    {Py_tp_doc, "Runs a session for prepared shapes. One thread at a time, which whoever takes the session sees to."},
    {0, NULL},
};

static PyType_Spec runner_spec = {"tcompile.runtime._native.Runner", sizeof(runner), 0, Py_TPFLAGS_DEFAULT, runner_slots};

static PyMethodDef functions[] = {
    {"describe", describe, METH_O, "What the head of an array object says."},
    {NULL, NULL, 0, NULL},
};

static int add_types(PyObject *module) {
    PyObject *type = PyType_FromSpec(&runner_spec);
    return type == NULL ? -1 : PyModule_AddObject(module, "Runner", type);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)add_types}, {0, NULL}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_native", NULL, 0, functions, slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
