/* Whether inputs fit a model's signature: types, ranks, symbols and their ranges, extents. */
#include "session.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

void tc_say(char *to, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(to, TC_TEXT_BYTES, format, arguments);
    va_end(arguments);
}

int32_t tc_refuse(tc_session *session, int32_t status, const char *hint) {
    tc_say(session->hint, "%s", hint);
    return status;
}

static int32_t check_types(tc_session *session, const tc_shape *shapes) {
    const tc_module_info *info = &session->module->parsed.info;
    for (int64_t i = 0; i < info->input_count; i++) {
        const tc_tensor *input = &info->inputs[i];
        if (shapes[i].dtype != input->dtype) {
            tc_say(session->error, "input '%s' has element type %d, expected %d", input->name, shapes[i].dtype, input->dtype);
            return tc_refuse(session, TC_INPUT, "element types are numbers of TensorProto.DataType");
        }
        if (shapes[i].rank != input->rank) {
            tc_say(session->error, "input '%s' has %d dimensions, expected %d", input->name, shapes[i].rank, input->rank);
            return tc_refuse(session, TC_INPUT, "");
        }
    }
    return TC_OK;
}

/* The first place in the inputs that a symbol's value comes from. */
static const tc_tensor *first_use(const tc_module_info *info, int64_t symbol, int32_t *axis) {
    for (int64_t i = 0; i < info->input_count; i++)
        for (*axis = 0; *axis < info->inputs[i].rank; (*axis)++)
            if (info->inputs[i].extents[*axis].kind == TC_SYMBOL && info->inputs[i].extents[*axis].value == symbol) return &info->inputs[i];
    *axis = 0;
    return &info->inputs[0];
}

static void bind_symbols(tc_session *session, const tc_shape *shapes) {
    const tc_module_info *info = &session->module->parsed.info;
    for (int64_t i = info->input_count - 1; i >= 0; i--) /* the first use is written last */
        for (int32_t axis = info->inputs[i].rank - 1; axis >= 0; axis--) {
            const tc_extent *extent = &info->inputs[i].extents[axis];
            if (extent->kind == TC_SYMBOL) session->frame.dims[extent->value] = shapes[i].extents[axis];
        }
}

/* The pitches: what the caller has set, else the extent, of the longest tensor with the symbol. */
static void bind_pitches(tc_session *session, const tc_tensor *tensors, int64_t count, int again) {
    int64_t *dims = session->frame.dims;
    for (int64_t i = 0; i < count; i++) {
        int32_t symbol = tensors[i].pitch_symbol;
        if (symbol < 0) continue;
        int ok;
        int64_t extent = tc_evaluate(&session->module->parsed, &tensors[i].extents[tensors[i].pitch_axis], dims, &ok);
        if (session->pitches[symbol] > 0) extent = session->pitches[symbol];
        if (ok && (!again || extent > dims[symbol])) dims[symbol] = extent;
    }
}

static int32_t check_range(tc_session *session, int64_t symbol) {
    const tc_parsed *parsed = &session->module->parsed;
    const tc_symbol *declared = &parsed->info.symbols[symbol];
    int64_t value = session->frame.dims[symbol];
    int low_ok, high_ok = 1, bounded = declared->hi.text != NULL;
    int64_t low = tc_evaluate(parsed, &declared->lo, session->frame.dims, &low_ok);
    int64_t high = bounded ? tc_evaluate(parsed, &declared->hi, session->frame.dims, &high_ok) : INT64_MAX;
    if (low_ok && high_ok && value >= low && value <= high) return TC_OK;
    int32_t axis;
    const tc_tensor *input = first_use(&parsed->info, symbol, &axis);
    if (session->pitches[symbol] > 0) {
        tc_say(session->error, "a pitch of %" PRId64 " rows, where at least %s is expected", value, declared->lo.text);
        return tc_refuse(session, TC_INPUT, "the arrays have fewer rows than the tensors in them");
    }
    tc_say(session->error, "input '%s' has extent %" PRId64 " on axis %d, where %s in %s..%s is expected", input->name, value, axis,
        declared->name, declared->lo.text, bounded ? declared->hi.text : "");
    return tc_refuse(session, TC_INPUT, "compile the model with a wider range for this dimension");
}

static int32_t check_extent(tc_session *session, int64_t number, int32_t axis, int64_t got) {
    const tc_parsed *parsed = &session->module->parsed;
    const tc_tensor *input = &parsed->info.inputs[number];
    const tc_extent *extent = &input->extents[axis];
    int ok;
    int64_t expected = tc_evaluate(parsed, extent, session->frame.dims, &ok);
    if (ok && got == expected && got >= 0) return TC_OK;
    if (extent->kind == TC_CONST) {
        tc_say(session->error, "input '%s' has extent %" PRId64 " on axis %d, expected %" PRId64, input->name, got, axis, expected);
        return tc_refuse(session, TC_INPUT, "the model was compiled for this extent; compile with a range to let it vary");
    }
    int32_t first_axis = 0;
    const tc_tensor *first = extent->kind == TC_SYMBOL ? first_use(&parsed->info, extent->value, &first_axis) : NULL;
    tc_say(session->error, "input '%s' has extent %" PRId64 " on axis %d, expected %s = %" PRId64 "%s%s%s", input->name, got, axis, extent->text,
        expected, first == NULL ? "" : " as in input '", first == NULL ? "" : first->name, first == NULL ? "" : "'");
    return tc_refuse(session, TC_INPUT, "dimensions of one name must agree");
}

int32_t tc_check_shapes(tc_session *session, const tc_shape *shapes) {
    const tc_module_info *info = &session->module->parsed.info;
    int32_t status = check_types(session, shapes);
    if (status != TC_OK) return status;
    bind_symbols(session, shapes);
    for (int again = 0; again < 2; again++) {
        bind_pitches(session, info->inputs, info->input_count, again);
        bind_pitches(session, info->outputs, info->output_count, again);
    }
    for (int64_t symbol = 0; symbol < info->entry_symbol_count; symbol++)
        if ((status = check_range(session, symbol)) != TC_OK) return status;
    for (int64_t i = 0; i < info->input_count; i++)
        for (int32_t axis = 0; axis < info->inputs[i].rank; axis++)
            if ((status = check_extent(session, i, axis, shapes[i].extents[axis])) != TC_OK) return status;
    return TC_OK;
}
