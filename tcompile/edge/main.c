/* Runs the model $name once and tells what came out.
 *
 *     ${id}_example [INPUT=EXTENTS[:FILE]]... [OUTPUT>FILE]...
 *
 * EXTENTS: 1x3x224x224; needed where the model's own are symbols greater than their least value. FILE: the elements, raw,
 * row-major, little-endian; zeros where none is given. An output's elements are written to its file in the same form.
 */
#include "${id}_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_RANK 64

static void fail(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

/* The extent that an input has where nothing is said: a constant, or the least value of its symbol that is not zero. */
static int64_t usual_extent(const tc_module_info *info, const tc_tensor *tensor, int32_t axis) {
    const tc_extent *extent = &tensor->extents[axis];
    if (extent->kind == TC_CONST) return extent->value;
    if (extent->kind != TC_SYMBOL) fail(tensor->name, "say its extents: INPUT=1x3x224x224");
    const tc_extent *least = &info->symbols[extent->value].lo;
    return least->kind == TC_CONST && least->value > 1 ? least->value : 1;
}

/* What follows "NAME<sign>" among the arguments; NULL where there is none. */
static const char *argument(int count, char **arguments, const char *name, char sign) {
    size_t length = strlen(name);
    for (int i = 1; i < count; i++) {
        if (strncmp(arguments[i], name, length) == 0 && arguments[i][length] == sign) return arguments[i] + length + 1;
    }
    return NULL;
}

static int64_t elements(const int64_t *extents, int32_t rank) {
    int64_t count = 1;
    for (int32_t i = 0; i < rank; i++) count *= extents[i];
    return count;
}

static void parse_extents(const char *text, const tc_tensor *tensor, int64_t *extents) {
    for (int32_t axis = 0; axis < tensor->rank; axis++) {
        char *end;
        extents[axis] = strtoll(text, &end, 10);
        if (end == text || extents[axis] < 0 || (*end == 'x') != (axis + 1 < tensor->rank)) fail(tensor->name, "wrong extents");
        text = end + 1;
    }
}

static void *read_elements(const char *path, const char *name, size_t bytes) {
    void *data = calloc(bytes ? bytes : 1, 1);
    if (data == NULL) fail(name, "no memory");
    if (path == NULL) return data;
    FILE *file = fopen(path, "rb");
    if (file == NULL || fread(data, 1, bytes, file) != bytes || fgetc(file) != EOF) fail(path, "no file of the input's size");
    fclose(file);
    return data;
}

static void write_elements(const char *path, const void *data, size_t bytes) {
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(data, 1, bytes, file) != bytes || fclose(file) != 0) fail(path, "cannot be written");
}

static size_t bytes_of(const tc_tensor *tensor, int64_t count) { return (size_t)count * (size_t)tensor->element_bytes; }

int main(int count, char **arguments) {
    char error[1024];
    tc_module *module;
    if (${id}_open(&module, error, sizeof error) != TC_OK) fail("$name", error);
    const tc_module_info *info = tc_module_describe(module);
    tc_pool *pool = tc_pool_new(0);
    tc_session *session = tc_session_new(module, pool);
    if (session == NULL) fail("$name", "no memory");

    int64_t extents[${input_slots}][MAX_RANK];
    tc_shape shapes[${input_slots}];
    const void *inputs[${input_slots}] = {NULL};
    for (int64_t k = 0; k < info->input_count; k++) {
        const tc_tensor *tensor = &info->inputs[k];
        const char *given = argument(count, arguments, tensor->name, '='), *file = given == NULL ? NULL : strchr(given, ':');
        for (int32_t axis = 0; given == NULL && axis < tensor->rank; axis++) extents[k][axis] = usual_extent(info, tensor, axis);
        if (given != NULL) parse_extents(given, tensor, extents[k]);
        shapes[k] = (tc_shape){extents[k], tensor->rank, tensor->dtype};
        inputs[k] = read_elements(file == NULL ? NULL : file + 1, tensor->name, bytes_of(tensor, elements(extents[k], tensor->rank)));
    }

    if (tc_session_prepare(session, shapes) != TC_OK) fail(tc_session_error(session), tc_session_hint(session));
    void *outputs[${output_slots}] = {NULL};
    const int64_t *shape = tc_session_output_shapes(session);
    for (int64_t k = 0; k < info->output_count; shape += info->outputs[k++].rank) {
        const tc_tensor *tensor = &info->outputs[k]; /* a growing output stays in the session's memory */
        if (!tensor->growing) outputs[k] = read_elements(NULL, tensor->name, bytes_of(tensor, elements(shape, tensor->rank)));
    }
    if (tc_session_run(session, inputs, outputs) != TC_OK) fail(tc_session_error(session), tc_session_hint(session));

    shape = tc_session_output_shapes(session);
    for (int64_t k = 0; k < info->output_count; shape += info->outputs[k++].rank) {
        const tc_tensor *tensor = &info->outputs[k];
        const char *file = argument(count, arguments, tensor->name, '>');
        printf("%s: ONNX type %d, shape [", tensor->name, tensor->dtype);
        for (int32_t axis = 0; axis < tensor->rank; axis++) printf("%s%lld", axis ? ", " : "", (long long)shape[axis]);
        printf("]\n");
        if (file != NULL) write_elements(file, outputs[k], bytes_of(tensor, elements(shape, tensor->rank)));
        if (!tensor->growing) free(outputs[k]);
    }
    for (int64_t k = 0; k < info->input_count; k++) free((void *)inputs[k]);
    tc_session_free(session);
    tc_pool_free(pool);
    tc_close(module);
    return 0;
}
