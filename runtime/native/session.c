/* A session: the memory of one run at a time, and the host functions that compiled code calls during it. */
#include "session.h"

#include "platform.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLOT_LIMIT = 1 << 20, CHECK_NS = 20000000 };

static const char *status_text(int32_t status) {
    static const char *const texts[] = {"",
                                        "index out of range",
                                        "dimension out of its declared range",
                                        "extents that cannot be broadcast",
                                        "a shape that does not fit its tensor",
                                        "out of memory",
                                        "cancelled",
                                        "interrupted"};
    if (status == TC_BOUNDS) return "an access outside of its buffer, which is a bug of the compiler";
    return status > 0 && status <= TC_INTERRUPTED ? texts[status] : "unknown failure";
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

/* The bytes of a tensor's memory, gaps included; -1 where they are not valid. */
static int64_t tensor_bytes(const tc_session *session, const tc_tensor *tensor, const int64_t *extents) {
    int64_t bytes = tensor->element_bytes;
    for (int32_t axis = 0; axis < tensor->rank; axis++) {
        int64_t extent = axis == tensor->pitch_axis && extents[axis] >= 0 ? session->frame.dims[tensor->pitch_symbol] : extents[axis];
        if (extent < 0 || __builtin_mul_overflow(bytes, extent, &bytes)) return -1;
    }
    return bytes;
}

/* The host functions ----------------------------------------------------------------------------------------- */

/* What a thread does now: the session whose run it began, and the call that it measures. Concurrent blocks run on threads that
 * began nothing: only the one that did holds the embedding language's lock in turns. */
static _Thread_local struct {
    tc_session *running;
    int64_t call, since;
} here = {NULL, -1, 0};

static int32_t host_poll(void *raw) {
    tc_session *session = raw;
    int32_t status = atomic_load_explicit(&session->cancelled, memory_order_relaxed);
    if (status != 0 || session->hooks == NULL || here.running != session) return status;
    int64_t now = tc_now_coarse();
    if (now < session->next_check) return 0;
    session->next_check = now + CHECK_NS;
    session->hooks->acquire(session->hook_state);
    int stop = session->hooks->check();
    session->hook_state = session->hooks->release();
    if (stop) atomic_store(&session->cancelled, TC_INTERRUPTED);
    return stop ? TC_INTERRUPTED : 0;
}

static int32_t host_parallel_for(void *raw, tc_kernel kernel, const uint64_t *args, int64_t extent, int64_t grain) {
    tc_session *session = raw;
    if (extent <= 0) return 0;
    if (grain < 1) grain = 1;
    if (session->pool == NULL || extent <= grain) return kernel(args, 0, extent, session->frame.scratch);
    struct tc_spent *spent = session->spent == NULL || here.call < 0 ? NULL : &session->spent[here.call];
    tc_job job = {kernel, args, extent, grain, session->frame.scratch, session->frame.scratch_bytes, spent, session->clock};
    return tc_pool_run(session->pool, &job);
}

static void host_mark(void *raw, int64_t call) {
    tc_session *session = raw;
    int64_t now = tc_read_clock(session->clock), last = here.call;
    if (session->times != NULL && last >= 0) {
        session->times[last] += now - here.since;
        session->counts[last]++;
    }
    here.call = call >= 0 && call < session->module->parsed.info.call_count ? call : -1;
    here.since = now;
}

static const struct tc_host host_functions = {host_parallel_for, host_grow, host_poll, host_mark};

/* Life ------------------------------------------------------------------------------------------------------- */

tc_session *tc_session_new(tc_module *module, tc_pool *pool) {
    const tc_parsed *parsed = &module->parsed;
    const tc_module_info *info = &parsed->info;
    tc_session *session = calloc(1, sizeof *session);
    if (session == NULL) return NULL;
    size_t numbers = (size_t)(info->symbol_count + parsed->output_extents + parsed->input_extents + info->entry_symbol_count + 1);
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
    session->pitches = session->extents + parsed->input_extents;
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
    free(session->spent);
    tc_pool_free(session->pool);
    tc_close(session->module);
    free(session);
}

/* Failures --------------------------------------------------------------------------------------------------- */

static void describe_failure(tc_session *session, int32_t status) {
    const tc_module_info *info = &session->module->parsed.info;
    int64_t site = session->frame.failed_call;
    const tc_site *found = NULL;
    if (site >= 0 && site < info->call_count) found = &info->calls[site];
    if (site < 0 && site > TC_NO_SITE && -1 - site < info->requirement_count) found = &info->requirements[-1 - site];
    size_t at = (size_t)snprintf(session->error, TC_TEXT_BYTES, "%s", status_text(status));
    session->hint[0] = 0;
    if (found == NULL) return;
    at += (size_t)snprintf(session->error + at, TC_TEXT_BYTES - at, site >= 0 ? " in kernel %s" : ": %s", found->name);
    if (site < 0 && at < TC_TEXT_BYTES) at += (size_t)snprintf(session->error + at, TC_TEXT_BYTES - at, " (value %" PRId64 ")", session->frame.failed_value);
    for (int64_t i = 0; i < found->source_count && at < TC_TEXT_BYTES; i++)
        at += (size_t)snprintf(session->error + at, TC_TEXT_BYTES - at, "%s%s", i == 0 ? ", of node " : ", ", found->sources[i]);
}

static int32_t check_outputs(tc_session *session) {
    const tc_module_info *info = &session->module->parsed.info;
    const int64_t *extents = session->frame.output_shapes;
    for (int64_t k = 0; k < info->output_count; extents += info->outputs[k++].rank) {
        if (info->outputs[k].growing || tensor_bytes(session, &info->outputs[k], extents) >= 0) continue;
        tc_say(session->error, "output '%s' has no valid size for these inputs", info->outputs[k].name);
        return tc_refuse(session, TC_SHAPE, "");
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
        tc_say(session->error, "no memory: these inputs need an arena of %" PRId64 " bytes and scratch of %" PRId64 " bytes for each of %" PRId64
            " threads", frame->arena_bytes, frame->scratch_bytes, frame->threads);
        return tc_refuse(session, TC_MEMORY, "smaller inputs, or fewer threads, need less");
    }
    frame->scratch_bytes = stride;
    frame->arena = session->arena.data;
    frame->scratch = session->scratch.data;
    return TC_OK;
}

int32_t tc_session_set_pitch(tc_session *session, int32_t symbol, int64_t rows) {
    session->prepared = 0;
    if (symbol < 0 || symbol >= session->module->parsed.info.entry_symbol_count || rows < 0) {
        tc_say(session->error, "symbol %d has no pitch of %" PRId64 " rows", symbol, rows);
        return tc_refuse(session, TC_USAGE, "pitch_symbol of a tensor is one");
    }
    session->pitches[symbol] = rows;
    return TC_OK;
}

int32_t tc_session_prepare(tc_session *session, const tc_shape *inputs) {
    session->prepared = 0;
    session->error[0] = session->hint[0] = 0;
    int32_t status = tc_check_shapes(session, inputs);
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
        int64_t bytes = tensor_bytes(session, &info->outputs[k], extents);
        if (!reserve(session, &session->spares[k], bytes, 0)) {
            tc_say(session->error, "no memory for output '%s' of %" PRId64 " bytes", info->outputs[k].name, bytes);
            return tc_refuse(session, TC_MEMORY, "");
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
        if (outputs[k] != NULL && tensor_bytes(session, &info->outputs[k], extents) >= 0) continue;
        tc_say(session->error, "output '%s' was not made by the run", info->outputs[k].name);
        return tc_refuse(session, TC_SHAPE, "");
    }
    return TC_OK;
}

static int32_t execute(tc_session *session) {
    uint64_t state = tc_float_enter();
    tc_session *outer = here.running;
    session->frame.failed_call = TC_NO_SITE;
    here.running = session;
    here.call = -1;
    if (session->pool != NULL) tc_pool_enter(session->pool);
    int32_t status = session->module->run(&session->frame);
    if (session->pool != NULL) tc_pool_leave(session->pool);
    tc_float_leave(state);
    here.running = outer;
    return status;
}

int32_t tc_session_run(tc_session *session, const void *const *inputs, void **outputs) {
    if (!session->prepared) {
        tc_say(session->error, "a run before the input shapes were prepared");
        return tc_refuse(session, TC_USAGE, "call tc_session_prepare first");
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

void tc_session_cancel(tc_session *session) { atomic_store(&session->cancelled, TC_CANCELLED); }

const char *tc_session_error(const tc_session *session) { return session->error; }
const char *tc_session_hint(const tc_session *session) { return session->hint; }
void tc_session_set_hooks(tc_session *session, const tc_hooks *hooks) { session->hooks = hooks; }

/* Measuring -------------------------------------------------------------------------------------------------- */

int32_t tc_session_profile(tc_session *session, int32_t clock) {
    size_t count = (size_t)session->module->parsed.info.call_count;
    free(session->times);
    free(session->spent);
    session->times = session->counts = NULL;
    session->spent = NULL;
    session->frame.profile = 0;
    if (clock == TC_CLOCK_NONE) return TC_OK;
    session->times = calloc(2 * count + 1, sizeof *session->times);
    session->spent = calloc(count + 1, sizeof *session->spent);
    if (session->times == NULL || session->spent == NULL) return TC_MEMORY;
    session->counts = session->times + count;
    session->clock = clock;
    session->frame.profile = 1;
    return TC_OK;
}

int64_t tc_session_busy(const tc_session *session, int64_t call) { return session->spent == NULL ? 0 : session->spent[call].busy; }
int64_t tc_session_span(const tc_session *session, int64_t call) { return session->spent == NULL ? 0 : session->spent[call].span; }

const int64_t *tc_session_times(const tc_session *session) { return session->times; }
const int64_t *tc_session_counts(const tc_session *session) { return session->counts; }

int64_t tc_session_extent(const tc_session *session, const tc_extent *extent) {
    int ok;
    int64_t value = tc_evaluate(&session->module->parsed, extent, session->frame.dims, &ok);
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
