/* What differs between operating systems and CPUs, behind plain functions. */
#ifndef TC_PLATFORM_H
#define TC_PLATFORM_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define TC_ALIGN 64

/* 64-byte aligned memory, never NULL for 0 bytes; NULL where there is none. */
void *tc_alloc(int64_t bytes);
void tc_free(void *block);

/* A copy of code in memory that may be executed and not written; NULL on failure. */
void *tc_map_code(const void *code, size_t size);
void tc_unmap_code(void *code, size_t size);

/* Nanoseconds of a clock that never steps back; the coarse one is cheaper and a few milliseconds behind. */
int64_t tc_now(void);
int64_t tc_now_coarse(void);

/* Nanoseconds by the clock TC_CLOCK_WALL (tc_now), or TC_CLOCK_CPU: of the calling thread's work alone. */
int64_t tc_read_clock(int32_t clock);

/* Tells the CPU that this is a spin loop. */
void tc_relax(void);

/* Sleeps while *word is `expected`, until tc_wake; may return early. */
void tc_wait(atomic_uint *word, unsigned expected);
void tc_wake(atomic_uint *word, int sleepers);

/* Round to nearest, subnormals kept, traps masked. Enter returns what leave restores. */
uint64_t tc_float_enter(void);
void tc_float_leave(uint64_t state);

typedef struct tc_thread {
    uint64_t handle;
    void (*body)(void *);
    void *argument;
} tc_thread;
/* Returns 0 on success; then *thread stays where it is until it is joined. */
int tc_thread_start(tc_thread *thread, void (*body)(void *), void *argument);
void tc_thread_join(tc_thread *thread);

/* How many times this process is a fork's child; counted from the first call on. */
unsigned tc_fork_generation(void);

#endif
