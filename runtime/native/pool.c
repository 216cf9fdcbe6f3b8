/* The thread pool: a static partition into equal shares, one for each thread, threads that spin briefly between kernels
 * and then sleep.
 *
 * A job is published by raising `epoch`. A share is one range, so that a thread finds its data in its cache from kernel
 * to kernel. It is cut into parts of a half, a quarter, ... and whoever is free takes a part that nobody began: a thread
 * that the OS does not run, or a slow core, delays nobody, and the last parts are small. A part is taken by moving its
 * `claim` up to the job's epoch. Parts that a job does not have are claimed before it is published: once a job is over all
 * claims are at its epoch, and a late thread finds nothing to take and never looks at the job, which may be the next one's
 * by then.
 */
#include "pool.h"

#include "platform.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_THREADS = 1024, PARTS_PER_THREAD = 6, SPIN_NS = 100000, SPINS_PER_CLOCK = 64 };

struct part {
    atomic_uint claim;
    int32_t status;
    int64_t spent; /* nanoseconds, of a job that is measured */
};

struct worker {
    _Alignas(TC_ALIGN) struct part parts[PARTS_PER_THREAD];
    unsigned epoch; /* the last before it started */
    int64_t load;   /* in a count of what threads had to do */
    int32_t index;
    tc_pool *pool;
    tc_thread thread;
};

struct tc_pool {
    _Alignas(TC_ALIGN) atomic_uint epoch;
    atomic_uint sleepers;
    atomic_uint stop;
    _Alignas(TC_ALIGN) atomic_uint unclaimed; /* parts that nobody began; a hint to look no further */
    _Alignas(TC_ALIGN) atomic_uint remaining; /* parts not finished */
    atomic_uint waiting;                      /* the job's owner sleeps on `remaining` */
    _Alignas(TC_ALIGN) atomic_uint owner;     /* 2 * fork generation + 1 while a job runs */
    atomic_ullong users;                      /* fork generation << 32 | runs in progress */
    atomic_uint holds;
    int32_t threads;
    int32_t started; /* workers that run, index 0 not counted */
    int32_t wanted;  /* workers to start; fewer where the OS gave no more */
    unsigned generation;
    tc_job job;
    atomic_uint members; /* threads that may work on the job */
    atomic_uint cuts;    /* parts of each member's share */
    struct worker *workers;
};

tc_pool *tc_pool_new(int32_t threads) {
    if (threads <= 0) threads = tc_default_threads();
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    tc_pool *pool = tc_alloc(sizeof *pool);
    struct worker *workers = tc_alloc((int64_t)sizeof(struct worker) * threads);
    if (pool == NULL || workers == NULL) {
        tc_free(pool);
        tc_free(workers);
        return NULL;
    }
    memset(pool, 0, sizeof *pool);
    memset(workers, 0, sizeof(struct worker) * (size_t)threads);
    pool->workers = workers;
    pool->threads = threads;
    pool->wanted = threads - 1;
    atomic_store(&pool->holds, 1);
    pool->generation = tc_fork_generation();
    return pool;
}

tc_pool *tc_pool_share(tc_pool *pool) {
    if (pool != NULL) atomic_fetch_add(&pool->holds, 1);
    return pool;
}

void tc_pool_free(tc_pool *pool) {
    if (pool == NULL || atomic_fetch_sub(&pool->holds, 1) != 1) return;
    if (pool->generation == tc_fork_generation()) {
        atomic_store(&pool->stop, 1);
        atomic_fetch_add(&pool->epoch, 1);
        tc_wake(&pool->epoch, MOST_THREADS);
        for (int32_t i = 1; i <= pool->started; i++) tc_thread_join(&pool->workers[i].thread);
    }
    tc_free(pool->workers);
    tc_free(pool);
}

int32_t tc_pool_threads(const tc_pool *pool) { return pool->threads; }

static void count_user(tc_pool *pool, int change) {
    unsigned long long generation = tc_fork_generation(), old = atomic_load(&pool->users), next;
    do {
        unsigned long long users = old >> 32 == generation ? old & 0xFFFFFFFF : 0; /* others' runs did not survive the fork */
        if (change < 0 && users == 0) return;
        next = generation << 32 | (users + (unsigned long long)change);
    } while (!atomic_compare_exchange_weak(&pool->users, &old, next));
}

void tc_pool_enter(tc_pool *pool) { count_user(pool, 1); }
void tc_pool_leave(tc_pool *pool) { count_user(pool, -1); }

static int claim(struct part *part, unsigned epoch) {
    unsigned seen = atomic_load_explicit(&part->claim, memory_order_relaxed);
    while ((int32_t)(epoch - seen) > 0)
        if (atomic_compare_exchange_weak_explicit(&part->claim, &seen, epoch, memory_order_acquire, memory_order_relaxed)) return 1;
    return 0;
}

/* Part `part` of the share of `member` runs on the thread `self`, in that thread's scratch. Behind part k of a share of n
 * grains lie n >> (k + 1) more, behind the last none. */
static void run_part(tc_pool *pool, int32_t member, int32_t part, int32_t self) {
    const tc_job *job = &pool->job;
    int64_t grains = (job->extent + job->grain - 1) / job->grain, members = atomic_load_explicit(&pool->members, memory_order_relaxed);
    int64_t last = atomic_load_explicit(&pool->cuts, memory_order_relaxed) - 1;
    int64_t start = grains * member / members, stop = grains * (member + 1) / members, count = stop - start;
    int64_t begin = (stop - (count >> part)) * job->grain, end = (part == last ? stop : stop - (count >> (part + 1))) * job->grain;
    if (end > job->extent) end = job->extent;
    struct part *here = &pool->workers[member].parts[part];
    int64_t before = job->spent == NULL ? 0 : tc_read_clock(job->clock);
    here->status = job->kernel(job->args, begin, end, job->scratch + self * job->stride);
    if (job->spent != NULL) here->spent = tc_read_clock(job->clock) - before;
}

/* Takes the parts of this thread's share, then whatever is left of others'. What is read of the job before a claim is a hint. */
static void work(tc_pool *pool, int32_t self, unsigned epoch) {
    int32_t members = (int32_t)atomic_load_explicit(&pool->members, memory_order_relaxed);
    if (self >= members) return;
    for (int32_t i = 0; i < members * PARTS_PER_THREAD; i++) {
        int32_t member = (self + i / PARTS_PER_THREAD) % members, part = i % PARTS_PER_THREAD;
        if (!claim(&pool->workers[member].parts[part], epoch)) {
            if (atomic_load_explicit(&pool->unclaimed, memory_order_relaxed) == 0) return;
            continue;
        }
        atomic_fetch_sub_explicit(&pool->unclaimed, 1, memory_order_relaxed);
        run_part(pool, member, part, self);
        if (atomic_fetch_sub(&pool->remaining, 1) == 1 && atomic_load(&pool->waiting)) tc_wake(&pool->remaining, 1);
    }
}

/* Returns when *word is not `old` any more: spins, then sleeps, counted in *sleepers. */
static unsigned await_change(atomic_uint *word, unsigned old, atomic_uint *sleepers) {
    unsigned now = old;
    int64_t start = tc_now();
    for (int spins = 1; (now = atomic_load_explicit(word, memory_order_acquire)) == old; spins++) {
        tc_relax();
        if (spins % SPINS_PER_CLOCK == 0 && tc_now() - start > SPIN_NS) break;
    }
    if (now != old) return now;
    atomic_fetch_add(sleepers, 1);
    while ((now = atomic_load(word)) == old) tc_wait(word, old);
    atomic_fetch_sub(sleepers, 1);
    return now;
}

static void worker_body(void *argument) {
    struct worker *worker = argument;
    tc_pool *pool = worker->pool;
    unsigned epoch = worker->epoch;
    tc_float_enter();
    for (;;) {
        epoch = await_change(&pool->epoch, epoch, &pool->sleepers);
        if (atomic_load(&pool->stop)) return;
        work(pool, worker->index, epoch);
    }
}

/* Starts workers: at first, and after a fork. Where the OS gives fewer, those and the caller do all parts. */
static void start_workers(tc_pool *pool) {
    unsigned generation = tc_fork_generation();
    if (pool->generation != generation) {
        pool->generation = generation;
        pool->started = 0;
        pool->wanted = pool->threads - 1;
        atomic_store(&pool->sleepers, 0);
        atomic_store(&pool->waiting, 0);
    }
    unsigned epoch = atomic_load(&pool->epoch);
    for (int32_t i = 0; i < pool->threads; i++)
        for (int32_t k = 0; k < PARTS_PER_THREAD; k++) atomic_store(&pool->workers[i].parts[k].claim, epoch);
    while (pool->started < pool->wanted) {
        struct worker *worker = &pool->workers[pool->started + 1];
        worker->index = pool->started + 1;
        worker->pool = pool;
        worker->epoch = epoch;
        if (tc_thread_start(&worker->thread, worker_body, worker) != 0) {
            pool->wanted = pool->started;
            break;
        }
        pool->started++;
    }
}

static int acquire(tc_pool *pool) {
    unsigned generation = tc_fork_generation(), mine = 2 * generation + 1, seen = atomic_load(&pool->owner);
    if (seen == mine) return 0;
    return atomic_compare_exchange_strong_explicit(&pool->owner, &seen, mine, memory_order_acquire, memory_order_relaxed);
}

/* How often the smallest of `members` shares halves: no part is empty. */
static int32_t cuts_of(int64_t grains, int64_t members) {
    int32_t cuts = 1;
    while (cuts < PARTS_PER_THREAD && grains / members >> cuts > 0) cuts++;
    return cuts;
}

static void publish(tc_pool *pool, const tc_job *job, int32_t members, int32_t cuts) {
    unsigned epoch = atomic_load(&pool->epoch) + 1;
    pool->job = *job;
    atomic_store_explicit(&pool->members, (unsigned)members, memory_order_relaxed);
    atomic_store_explicit(&pool->cuts, (unsigned)cuts, memory_order_relaxed);
    atomic_store_explicit(&pool->unclaimed, (unsigned)(members * cuts), memory_order_relaxed);
    atomic_store_explicit(&pool->remaining, (unsigned)(members * cuts), memory_order_relaxed);
    for (int32_t i = 0; i < pool->threads; i++)
        for (int32_t k = i < members ? cuts : 0; k < PARTS_PER_THREAD; k++)
            atomic_store_explicit(&pool->workers[i].parts[k].claim, epoch, memory_order_relaxed);
    atomic_store(&pool->epoch, epoch);
    if (atomic_load(&pool->sleepers) > 0) tc_wake(&pool->epoch, members - 1);
    work(pool, 0, epoch);
}

static void await_parts(tc_pool *pool) {
    int64_t start = tc_now();
    for (int spins = 1; atomic_load_explicit(&pool->remaining, memory_order_acquire) != 0; spins++) {
        tc_relax();
        if (spins % SPINS_PER_CLOCK != 0 || tc_now() - start < SPIN_NS) continue;
        atomic_store(&pool->waiting, 1);
        unsigned left = atomic_load(&pool->remaining);
        if (left != 0) tc_wait(&pool->remaining, left);
        atomic_store(&pool->waiting, 0);
    }
}

static int32_t first_failure(const tc_pool *pool, int32_t members, int32_t cuts) {
    for (int32_t i = 0; i < members; i++)
        for (int32_t k = 0; k < cuts; k++)
            if (pool->workers[i].parts[k].status != 0) return pool->workers[i].parts[k].status;
    return 0;
}

/* The part that a thread takes next, of those that a count has not yet taken: its time is then negative. */
static struct part *next_part(const tc_pool *pool, int32_t members, int32_t cuts, int32_t self) {
    for (int32_t i = 0; i < members * cuts; i++) {
        struct part *part = &pool->workers[(self + i / cuts) % members].parts[i % cuts];
        if (part->spent >= 0) return part;
    }
    return NULL;
}

/* What the parts of a finished job took, and how long the busiest of the threads works that take parts as they get free. */
static void count_spent(tc_pool *pool, int32_t members, int32_t cuts) {
    struct tc_spent *spent = pool->job.spent;
    for (int32_t i = 0; i < members; i++) pool->workers[i].load = 0;
    for (int32_t i = 0; i < members * cuts; i++) {
        int32_t idle = 0;
        for (int32_t k = 1; k < members; k++)
            if (pool->workers[k].load < pool->workers[idle].load) idle = k;
        struct part *part = next_part(pool, members, cuts, idle);
        pool->workers[idle].load += part->spent;
        spent->busy += part->spent;
        part->spent = -1;
    }
    int64_t most = 0;
    for (int32_t i = 0; i < members; i++)
        if (pool->workers[i].load > most) most = pool->workers[i].load;
    spent->span += most;
}

int32_t tc_pool_run(tc_pool *pool, const tc_job *job) {
    int64_t grains = (job->extent + job->grain - 1) / job->grain;
    int64_t users = (int64_t)(atomic_load_explicit(&pool->users, memory_order_relaxed) & 0xFFFFFFFF);
    int64_t members = pool->threads - (users > 1 ? users - 1 : 0);
    if (members > grains) members = grains;
    if (members <= 1 || !acquire(pool)) return job->kernel(job->args, 0, job->extent, job->scratch);
    int32_t cuts = cuts_of(grains, members);
    if (pool->started < pool->wanted || pool->generation != tc_fork_generation()) start_workers(pool);
    publish(pool, job, (int32_t)members, cuts);
    await_parts(pool);
    int32_t status = first_failure(pool, (int32_t)members, cuts);
    if (job->spent != NULL) count_spent(pool, (int32_t)members, cuts);
    atomic_store_explicit(&pool->owner, 0, memory_order_release);
    return status;
}
