/* What a session holds. */
#ifndef TC_SESSION_H
#define TC_SESSION_H

#include "module.h"
#include "pool.h"

#include <stdatomic.h>

enum { TC_TEXT_BYTES = 2048 };

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
    int64_t *pitches; /* per entry symbol: the caller's; 0: none */
    void **inputs, **outputs;
    int prepared;
    atomic_int cancelled;
    const tc_hooks *hooks;
    void *hook_state;
    int64_t next_check;
    int64_t *times, *counts; /* per call, while profiling */
    struct tc_spent *spent;  /* likewise, on several threads */
    int32_t clock;
    int64_t held, peak, allocations;
    char error[TC_TEXT_BYTES], hint[TC_TEXT_BYTES];
};

/* Writes the session's error or hint. */
void tc_say(char *to, const char *format, ...);
/* Sets the hint and returns the status. */
int32_t tc_refuse(tc_session *session, int32_t status, const char *hint);

/* Checks the inputs against the signature and binds the entry symbols. TC_INPUT with a message where they do not fit. */
int32_t tc_check_shapes(tc_session *session, const tc_shape *shapes);

#endif
