/* Threads that share the parts of a parallel kernel. */
#ifndef TC_POOL_H
#define TC_POOL_H

#include "tcompile.h"

typedef struct tc_job {
    tc_kernel kernel;
    const uint64_t *args;
    int64_t extent;
    int64_t grain;
    uint8_t *scratch; /* of part 0's thread; the others' follow at multiples of stride */
    int64_t stride;
    struct tc_spent *spent; /* where to say what the parts took, NULL: nowhere */
    int32_t clock;          /* by which clock, see tc_read_clock */
} tc_job;

/* Nanoseconds that a job's parts took: together, and on the thread that had the most if none ever waited. */
struct tc_spent {
    int64_t busy;
    int64_t span;
};

tc_pool *tc_pool_share(tc_pool *pool);

/* Between enter and leave a run counts as one of the pool's users: each user leaves a thread to every other. */
void tc_pool_enter(tc_pool *pool);
void tc_pool_leave(tc_pool *pool);

/* Runs all parts of the job, on the pool's threads where no other run uses them now. Returns the status of the
 * first part that failed. The parts depend on neither. */
int32_t tc_pool_run(tc_pool *pool, const tc_job *job);

#endif
