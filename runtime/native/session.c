/* A session: the memory of one run at a time, and the host functions that compiled code calls during it. */
#include "module.h"
#include "platform.h"
#include "pool.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLOT_LIMIT = 1 << 20, TEXT_BYTES = 2048, CHECK_NS = 20000000 };

struct block {
    void *data;
    int64_t capacity;
};

struct tc_session {
    tc_module *module;
    tc_pool *pool;
    struct tc_frame frame;
    struct block arena, scratch;
    struct block *slots, *spares; /* growing buffers; outputs that nobody asked for */
    int64_t slot_count;
    int64_t *numbers; /* dims, then output shapes, of the frame; then the prepared input extents */
    int64_t *extents;
    void **inputs, **outputs;
    int prepared;
    atomic_int cancelled;
    const tc_hooks *hooks;
    void *hook_state;
    int64_t next_check;
    int64_t *times, *counts; /* per call, while profiling */
    int64_t marked_call, marked_at;
    int64_t held, peak, allocations;
    char error[TEXT_BYTES], hint[TEXT_BYTES];
};

static const char *status_text(int32_t status) {
    static const char *const texts[] = {"",
                                        "index out of range",
                                        "dimension out of its declared range",
                                        "extents that cannot be broadcast",
                                        "a shape that does not fit its tensor",
                                        "out of memory",
                                        "cancelled",
                                        "interrupted"};
    return status > 0 && status <= TC_INTERRUPTED ? texts[status] : "unknown failure";
}

static void say(char *to, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(to, TEXT_BYTES, format, arguments);
    va_end(arguments);
}

static int32_t refuse(tc_session *session, int32_t status, const char *hint) {
    say(session->hint, "%s", hint);
    return status;
}

/* Memory ----------------------------------------------------------------------------------------------------- */

/* Makes a block hold `bytes`, of which the first `keep` are preserved. A block that grows again grows by half. */
static int reserve(tc_session *session, struct block *block, int64_t bytes, int64_t keep) {
    if (block->data != NULL && bytes <= block->capacity) return 1;
    int64_t wanted = bytes, half = block->capacity + block->capacity / 2;
    if (block->capacity > 0 && half > wanted) wanted = half;
    if (keep == 0) { /* first give back, so that the peak is the larger and not the sum */
        tc_free(block->data);
        session->held -= block->capacity;
        *block = (struct block){NULL, 0};
    }
    void *data = tc_alloc(wanted);
    if (data == NULL && wanted > bytes) data = tc_alloc(wanted = bytes);
    if (data == NULL) return 0;
    if (keep > 0) memcpy(data, block->data, (size_t)(keep < block->capacity ? keep : block->capacity));
    session->held += wanted;
    if (session->held > session->peak) session->peak = session->held;
    tc_free(block->data);
    session->held -= block->capacity;
    session->allocations++;
    *block = (struct block){data, wanted};
    return 1;
}

static void *host_grow(void *raw, int64_t slot, int64_t bytes, int64_t keep) {
    tc_session *session = raw;
    if (slot < 0 || slot >= SLOT_LIMIT || bytes < 0) return NULL;
    if (slot >= session->slot_count) {
        int64_t count = slot + 1 > 2 * session->slot_count ? slot + 1 : 2 * session->slot_count;
        struct block *slots = realloc(session->slots, (size_t)count * sizeof *slots);
        if (slots == NULL) return NULL;
        memset(slots + session->slot_count, 0, (size_t)(count - session->slot_count) * sizeof *slots);
        session->slots = slots;
        session->slot_count = count;
        session->allocations++;
    }
    return reserve(session, &session->slots[slot], bytes, session->slots[slot].data == NULL ? 0 : keep) ? session->slots[slot].data : NULL;
}

static int64_t product(const int64_t *extents, int32_t rank, int64_t bytes) {
    for (int32_t axis = 0; axis < rank; axis++)
        if (extents[axis] < 0 || __builtin_mul_overflow(bytes, extents[axis], &bytes)) return -1;
    return bytes;
}

/* The host functions ----------------------------------------------------------------------------------------- */

static int32_t host_poll(void *raw) {
    tc_session *session = raw;
    if (atomic_load_explicit(&session->cancelled, memory_order_relaxed)) return TC_CANCELLED;
    if (session->hooks == NULL) return 0;
    int64_t now = tc_now_coarse();
    if (now < session->next_check) return 0;
    session->next_check = now + CHECK_NS;
    session->hooks->acquire(session->hook_state);
    int stop = session->hooks->check();
    session->hook_state = session->hooks->release();
    return stop ? TC_INTERRUPTED : 0;
}

static int32_t host_parallel_for(void *raw, tc_kernel kernel, const uint64_t *args, int64_t extent, int64_t grain) {
    tc_session *session = raw;
    if (extent <= 0) return 0;
    if (grain < 1) grain = 1;
    if (session->pool == NULL || extent <= grain) return kernel(args, 0, extent, session->frame.scratch);
    tc_job job = {kernel, args, extent, grain, session->frame.scratch, session->frame.scratch_bytes};
    return tc_pool_run(session->pool, &job);
}

static void host_mark(void *raw, int64_t call) {
    tc_session *session = raw;
    int64_t now = tc_now(), last = session->marked_call;
    if (session->times != NULL && last >= 0) {
        session->times[last] += now - session->marked_at;
        session->counts[last]++;
    }
    session->marked_call = call >= 0 && call < session->module->parsed.info.call_count ? call : -1;
    session->marked_at = now;
}

static const struct tc_host host_functions = {host_parallel_for, host_grow, host_poll, host_mark};

/* Life ------------------------------------------------------------------------------------------------------- */

tc_session *tc_session_new(tc_module *module, tc_pool *pool) {
    const tc_parsed *parsed = &module->parsed;
    const tc_module_info *info = &parsed->info;
    tc_session *session = calloc(1, sizeof *session);
    if (session == NULL) return NULL;
    size_t numbers = (size_t)(info->symbol_count + parsed->output_extents + parsed->input_extents + 1);
    session->numbers = calloc(numbers, sizeof *session->numbers);
    session->inputs = calloc((size_t)info->input_count + 1, sizeof *session->inputs);
    session->outputs = calloc((size_t)info->output_count + 1, sizeof *session->outputs);
    session->spares = calloc((size_t)info->output_count + 1, sizeof *session->spares);
    session->module = tc_module_share(module);
    session->pool = tc_pool_share(pool);
    if (session->numbers == NULL || session->inputs == NULL || session->outputs == NULL || session->spares == NULL) {
        tc_session_free(session);
        return NULL;
    }
    session->extents = session->numbers + info->symbol_count + parsed->output_extents;
    session->frame = (struct tc_frame){.host = &host_functions,
                                       .session = session,
                                       .weights = module->weights,
                                       .inputs = session->inputs,
                                       .outputs = session->outputs,
                                       .dims = session->numbers,
                                       .output_shapes = session->numbers + info->symbol_count,
                                       .threads = pool == NULL ? 1 : tc_pool_threads(pool)};
    return session;
}

void tc_session_free(tc_session *session) {
    if (session == NULL) return;
    tc_free(session->arena.data);
    tc_free(session->scratch.data);
    for (int64_t i = 0; i < session->slot_count; i++) tc_free(session->slots[i].data);
    for (int64_t i = 0; session->spares != NULL && i < session->module->parsed.info.output_count; i++) tc_free(session->spares[i].data);
    free(session->slots);
    free(session->spares);
    free(session->numbers);
    free(session->inputs);
    free(session->outputs);
    free(session->times);
    tc_pool_free(session->pool);
    tc_close(session->module);
    free(session);
}

/* Inputs ----------------------------------------------------------------------------------------------------- */

static int32_t check_types(tc_session *session, const tc_shape *shapes) {
    const tc_module_info *info = &session->module->parsed.info;
    for (int64_t i = 0; i < info->input_count; i++) {
        const tc_tensor *input = &info->inputs[i];
        if (shapes[i].dtype != input->dtype) {
            say(session->error, "input '%s' has element type %d, expected %d", input->name, shapes[i].dtype, input->dtype);
            return refuse(session, TC_INPUT, "element types are numbers of TensorProto.DataType");
        }
        if (shapes[i].rank != input->rank) {
            say(session->error, "input '%s' has %d dimensions, expected %d", input->name, shapes[i].rank, input->rank);
            return refuse(session, TC_INPUT, "");
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
    say(session->error, "input '%s' has extent %" PRId64 " on axis %d, where %s in %s..%s is expected", input->name, value, axis,
        declared->name, declared->lo.text, bounded ? declared->hi.text : "");
    return refuse(session, TC_INPUT, "compile the model with a wider range for this dimension");
}

static int32_t check_extent(tc_session *session, int64_t number, int32_t axis, int64_t got) {
    const tc_parsed *parsed = &session->module->parsed;
    const tc_tensor *input = &parsed->info.inputs[number];
    const tc_extent *extent = &input->extents[axis];
    int ok;
    int64_t expected = tc_evaluate(parsed, extent, session->frame.dims, &ok);
    if (ok && got == expected && got >= 0) return TC_OK;
    if (extent->kind == TC_CONST) {
        say(session->error, "input '%s' has extent %" PRId64 " on axis %d, expected %" PRId64, input->name, got, axis, expected);
        return refuse(session, TC_INPUT, "the model was compiled for this extent; compile with a range to let it vary");
    }
    int32_t first_axis = 0;
    const tc_tensor *first = extent->kind == TC_SYMBOL ? first_use(&parsed->info, extent->value, &first_axis) : NULL;
    say(session->error, "input '%s' has extent %" PRId64 " on axis %d, expected %s = %" PRId64 "%s%s%s", input->name, got, axis, extent->text,
        expected, first == NULL ? "" : " as in input '", first == NULL ? "" : first->name, first == NULL ? "" : "'");
    return refuse(session, TC_INPUT, "dimensions of one name must agree");
}

static int32_t check_shapes(tc_session *session, const tc_shape *shapes) {
    const tc_module_info *info = &session->module->parsed.info;
    int32_t status = check_types(session, shapes);
    if (status != TC_OK) return status;
    bind_symbols(session, shapes);
    for (int64_t symbol = 0; symbol < info->entry_symbol_count; symbol++)
        if ((status = check_range(session, symbol)) != TC_OK) return status;
    for (int64_t i = 0; i < info->input_count; i++)
        for (int32_t axis = 0; axis < info->inputs[i].rank; axis++)
            if ((status = check_extent(session, i, axis, shapes[i].extents[axis])) != TC_OK) return status;
    return TC_OK;
}

static void describe_failure(tc_session *session, int32_t status) {
    const tc_module_info *info = &session->module->parsed.info;
    int64_t site = session->frame.failed_call;
    const tc_site *found = NULL;
    if (site >= 0 && site < info->call_count) found = &info->calls[site];
    if (site < 0 && site > TC_NO_SITE && -1 - site < info->requirement_count) found = &info->requirements[-1 - site];
    size_t at = (size_t)snprintf(session->error, TEXT_BYTES, "%s", status_text(status));
    session->hint[0] = 0;
    if (found == NULL) return;
    at += (size_t)snprintf(session->error + at, TEXT_BYTES - at, site >= 0 ? " in kernel %s" : ": %s", found->name);
    if (site < 0 && at < TEXT_BYTES) at += (size_t)snprintf(session->error + at, TEXT_BYTES - at, " (value %" PRId64 ")", session->frame.failed_value);
    for (int64_t i = 0; i < found->source_count && at < TEXT_BYTES; i++)
        at += (size_t)snprintf(session->error + at, TEXT_BYTES - at, "%s%s", i == 0 ? ", of node " : ", ", found->sources[i]);
}

static int32_t check_outputs(tc_session *session) {
    const tc_module_info *info = &session->module->parsed.info;
    const int64_t *extents = session->frame.output_shapes;
    for (int64_t k = 0; k < info->output_count; extents += info->outputs[k++].rank) {
        if (info->outputs[k].growing || product(extents, info->outputs[k].rank, info->outputs[k].element_bytes) >= 0) continue;
        say(session->error, "output '%s' has no valid size for these inputs", info->outputs[k].name);
        return refuse(session, TC_SHAPE, "");
    }
    return TC_OK;
}

/* Arena and scratch. A session that a pool serves has scratch for each thread. */
static int32_t reserve_frame(tc_session *session) {
    struct tc_frame *frame = &session->frame;
    int64_t stride = 0, scratch = 0;
    int ok = frame->arena_bytes >= 0 && frame->scratch_bytes >= 0 && !__builtin_add_overflow(frame->scratch_bytes, TC_ALIGN - 1, &stride);
    stride = stride / TC_ALIGN * TC_ALIGN;
    ok = ok && !__builtin_mul_overflow(stride, frame->threads, &scratch);
    ok = ok && reserve(session, &session->arena, frame->arena_bytes, 0) && reserve(session, &session->scratch, scratch, 0);
    if (!ok) {
        say(session->error, "no memory: these inputs need an arena of %" PRId64 " bytes and scratch of %" PRId64 " bytes for each of %" PRId64
            " threads", frame->arena_bytes, frame->scratch_bytes, frame->threads);
        return refuse(session, TC_MEMORY, "smaller inputs, or fewer threads, need less");
    }
    frame->scratch_bytes = stride;
    frame->arena = session->arena.data;
    frame->scratch = session->scratch.data;
    return TC_OK;
}

int32_t tc_session_prepare(tc_session *session, const tc_shape *inputs) {
    session->prepared = 0;
    session->error[0] = session->hint[0] = 0;
    int32_t status = check_shapes(session, inputs);
    if (status != TC_OK) return status;
    session->frame.failed_call = TC_NO_SITE;
    status = session->module->prepare(&session->frame);
    if (status != TC_OK) {
        describe_failure(session, status);
        return status;
    }
    if ((status = check_outputs(session)) != TC_OK || (status = reserve_frame(session)) != TC_OK) return status;
    session->prepared = 1;
    return TC_OK;
}

const int64_t *tc_session_output_shapes(const tc_session *session) { return session->frame.output_shapes; }

/* Running ---------------------------------------------------------------------------------------------------- */

/* The data of a tensor that the caller gives. */
static void *data_of(const tc_session *session, void *given) {
    if (given == NULL || session->hooks == NULL || session->hooks->data_offset < 0) return given;
    return *(void **)((char *)given + session->hooks->data_offset);
}

static int32_t place_tensors(tc_session *session, const void *const *inputs, void **outputs) {
    const tc_module_info *info = &session->module->parsed.info;
    for (int64_t i = 0; i < info->input_count; i++) session->inputs[i] = data_of(session, (void *)inputs[i]);
    const int64_t *extents = session->frame.output_shapes;
    for (int64_t k = 0; k < info->output_count; extents += info->outputs[k++].rank) {
        session->outputs[k] = info->outputs[k].growing ? NULL : data_of(session, outputs[k]);
        if (info->outputs[k].growing || outputs[k] != NULL) continue;
        int64_t bytes = product(extents, info->outputs[k].rank, info->outputs[k].element_bytes);
        if (!reserve(session, &session->spares[k], bytes, 0)) {
            say(session->error, "no memory for output '%s' of %" PRId64 " bytes", info->outputs[k].name, bytes);
            return refuse(session, TC_MEMORY, "");
        }
        session->outputs[k] = session->spares[k].data;
    }
    return TC_OK;
}

/* A growing output must have come with a block and valid extents. */
static int32_t fetch_outputs(tc_session *session, void **outputs) {
    const tc_module_info *info = &session->module->parsed.info;
    const int64_t *extents = session->frame.output_shapes;
    for (int64_t k = 0; k < info->output_count; extents += info->outputs[k++].rank) {
        if (!info->outputs[k].growing) continue;
        outputs[k] = session->outputs[k];
        if (outputs[k] != NULL && product(extents, info->outputs[k].rank, info->outputs[k].element_bytes) >= 0) continue;
        say(session->error, "output '%s' was not made by the run", info->outputs[k].name);
        return refuse(session, TC_SHAPE, "");
    }
    return TC_OK;
}

static int32_t execute(tc_session *session) {
    uint64_t state = tc_float_enter();
    session->frame.failed_call = TC_NO_SITE;
    session->marked_call = -1;
    if (session->pool != NULL) tc_pool_enter(session->pool);
    int32_t status = session->module->run(&session->frame);
    if (session->pool != NULL) tc_pool_leave(session->pool);
    tc_float_leave(state);
    return status;
}

int32_t tc_session_run(tc_session *session, const void *const *inputs, void **outputs) {
    if (!session->prepared) {
        say(session->error, "a run before the input shapes were prepared");
        return refuse(session, TC_USAGE, "call tc_session_prepare first");
    }
    int32_t status = place_tensors(session, inputs, outputs);
    if (status != TC_OK) return status;
    atomic_store_explicit(&session->cancelled, 0, memory_order_relaxed);
    if (session->hooks != NULL) {
        session->next_check = tc_now_coarse() + CHECK_NS;
        session->hook_state = session->hooks->release();
    }
    status = execute(session);
    if (session->hooks != NULL) session->hooks->acquire(session->hook_state);
    if (status != TC_OK) {
        describe_failure(session, status);
        return status;
    }
    return fetch_outputs(session, outputs);
}

void tc_session_cancel(tc_session *session) { atomic_store(&session->cancelled, 1); }

const char *tc_session_error(const tc_session *session) { return session->error; }
const char *tc_session_hint(const tc_session *session) { return session->hint; }
void tc_session_set_hooks(tc_session *session, const tc_hooks *hooks) { session->hooks = hooks; }

/* Measuring -------------------------------------------------------------------------------------------------- */

int32_t tc_session_profile(tc_session *session, int32_t on) {
    size_t count = (size_t)session->module->parsed.info.call_count;
    free(session->times);
    session->times = session->counts = NULL;
    session->frame.profile = 0;
    if (!on) return TC_OK;
    session->times = calloc(2 * count + 1, sizeof *session->times);
    if (session->times == NULL) return TC_MEMORY;
    session->counts = session->times + count;
    session->frame.profile = 1;
    return TC_OK;
}

const int64_t *tc_session_times(const tc_session *session) { return session->times; }
const int64_t *tc_session_counts(const tc_session *session) { return session->counts; }

int64_t tc_session_flops(const tc_session *session, int64_t call) {
    const tc_parsed *parsed = &session->module->parsed;
    int ok;
    if (call < 0 || call >= parsed->info.call_count) return -1;
    int64_t value = tc_evaluate(parsed, &parsed->info.calls[call].flops, session->frame.dims, &ok);
    return ok ? value : -1;
}

void tc_session_memory(const tc_session *session, tc_memory *memory) {
    *memory = (tc_memory){.arena_bytes = session->arena.capacity,
                          .scratch_bytes = session->scratch.capacity,
                          .peak_bytes = session->peak,
                          .allocations = session->allocations};
    for (int64_t i = 0; i < session->slot_count; i++) memory->growing_bytes += session->slots[i].capacity;
    for (int64_t i = 0; i < session->module->parsed.info.output_count; i++) memory->spare_bytes += session->spares[i].capacity;
}
