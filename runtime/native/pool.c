/* The thread pool: a static partition into equal shares, one for each thread, threads that spin briefly between kernels
 * and then sleep.
 *
 * A share is one range, so that a thread finds its data in its cache from kernel to kernel. It is cut into parts of a half,
 * a quarter, ... and whoever is free takes a part that nobody began: a thread that the OS does not run, or a slow core,
 * delays nobody, and the last parts are small.
 *
 * A small kernel takes microseconds and a cache line that goes from core to core up to half of one, so that a job moves few:
 * the job itself and its `ticket` come, each thread counts the parts of its own share in a line of its own, `taken`, and says
 * once how many it has done, in `done`. All three hold the job's number: what belongs to an earlier job counts as nothing, and
 * nothing has to be reset. Once a job is over all its parts are taken: a late thread finds nothing to take and never looks at
 * the job, which may be the next one's by then.
 */
#include "pool.h"

#include "platform.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_THREADS = 1024, PARTS_PER_THREAD = 6, SPINS_PER_CLOCK = 64 };
enum { SPIN_NS = 100000, BUSY_SPIN_NS = 2000000 }; /* before a thread sleeps: after a job, and while one runs that the next may follow */

/* Of a ticket, from its low bits: the parts of each share, the shares, the job's number. Of `taken` and `done` there are the
 * number and a count below it; of `done` a bit that says that a part failed. */
enum { CUTS_BITS = 3, MEMBERS_BITS = 11, NUMBER_SHIFT = CUTS_BITS + MEMBERS_BITS, COUNT_BITS = NUMBER_SHIFT - 1 };

#define LOW_BITS(bits) ((1u << (bits)) - 1)
#define FAILED (1u << COUNT_BITS)

_Static_assert(PARTS_PER_THREAD <= LOW_BITS(CUTS_BITS) && MOST_THREADS <= LOW_BITS(MEMBERS_BITS), "a ticket holds them");
_Static_assert(PARTS_PER_THREAD * MOST_THREADS <= LOW_BITS(COUNT_BITS), "a thread may do all parts");

typedef unsigned long long word;

struct worker {
    _Alignas(TC_ALIGN) atomic_ullong taken; /* parts of its share that some thread took */
    _Alignas(TC_ALIGN) atomic_ullong done;  /* parts that this thread did, of any share */
    int32_t failed_part;                    /* the first of those that failed, counted through all shares */
    int32_t status;
    int64_t spent[PARTS_PER_THREAD];       /* nanoseconds of its share's parts, of a job that is measured */
    int64_t load;                          /* in a count of what threads had to do */
    _Alignas(TC_ALIGN) atomic_uint asleep; /* until a job wakes it that it is a member of */
    int32_t index;
    word ticket; /* the last before it started */
    tc_pool *pool;
    tc_thread thread;
};

struct tc_pool {
    _Alignas(TC_ALIGN) atomic_ullong ticket;
    _Alignas(TC_ALIGN) tc_job job;
    _Alignas(TC_ALIGN) atomic_uint waiting; /* the job's owner sleeps until `finished` is raised */
    atomic_uint finished;
    atomic_uint stop;
    _Alignas(TC_ALIGN) atomic_uint owner; /* 2 * fork generation + 1 while a job runs */
    atomic_ullong users;                  /* fork generation << 32 | runs in progress */
    atomic_uint holds;
    int32_t threads;
    int32_t started; /* workers that run, index 0 not counted */
    int32_t wanted;  /* workers to start; fewer where the OS gave no more */
    unsigned generation;
    struct worker *workers;
};

static word number_of(word any) { return any >> NUMBER_SHIFT; }
static int32_t cuts_in(word ticket) { return (int32_t)(ticket & LOW_BITS(CUTS_BITS)); }
static int32_t members_in(word ticket) { return (int32_t)(ticket >> CUTS_BITS & LOW_BITS(MEMBERS_BITS)); }

static word next_ticket(tc_pool *pool, int32_t members, int32_t cuts) {
    word number = number_of(atomic_load_explicit(&pool->ticket, memory_order_relaxed)) + 1;
    return number << NUMBER_SHIFT | (word)members << CUTS_BITS | (word)cuts;
}

static void publish(tc_pool *pool, word ticket) {
    atomic_store(&pool->ticket, ticket);
    for (int32_t i = 1; i < members_in(ticket); i++) {
        atomic_uint *asleep = &pool->workers[i].asleep;
        if (atomic_load(asleep) && atomic_exchange(asleep, 0)) tc_wake(asleep, 1);
    }
}

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
        publish(pool, next_ticket(pool, pool->threads, 0));
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

/* Takes the next part of the member's share; -1 where there is none. */
static int32_t take_part(struct worker *member, word ticket) {
    word seen = atomic_load_explicit(&member->taken, memory_order_relaxed), number = number_of(ticket) << NUMBER_SHIFT, count;
    do {
        if (number_of(seen) > number_of(ticket)) return -1;
        count = number_of(seen) == number_of(ticket) ? seen & LOW_BITS(COUNT_BITS) : 0;
        if (count == (word)cuts_in(ticket)) return -1;
    } while (!atomic_compare_exchange_weak_explicit(&member->taken, &seen, number | (count + 1), memory_order_acquire, memory_order_relaxed));
    return (int32_t)count;
}

/* Part `part` of the share of `member` runs on the thread `self`, in that thread's scratch. Behind part k of a share of n
 * grains lie n >> (k + 1) more, behind the last none. */
static int32_t run_part(tc_pool *pool, word ticket, int32_t member, int32_t part, int32_t self) {
    const tc_job *job = &pool->job;
    int64_t grains = (job->extent + job->grain - 1) / job->grain, members = members_in(ticket);
    int64_t start = grains * member / members, stop = grains * (member + 1) / members, count = stop - start;
    int64_t begin = (stop - (count >> part)) * job->grain;
    int64_t end = (part == cuts_in(ticket) - 1 ? stop : stop - (count >> (part + 1))) * job->grain;
    if (end > job->extent) end = job->extent;
    int64_t before = job->spent == NULL ? 0 : tc_read_clock(job->clock);
    int32_t status = job->kernel(job->args, begin, end, job->scratch + self * job->stride);
    if (job->spent != NULL) pool->workers[member].spent[part] = tc_read_clock(job->clock) - before;
    return status;
}

/* Does the parts of this thread's share, then whatever is left of others', and says how many. */
static void work(tc_pool *pool, int32_t self, word ticket) {
    int32_t members = members_in(ticket), cuts = cuts_in(ticket);
    if (self >= members) return;
    struct worker *here = &pool->workers[self];
    word count = 0, failed = 0;
    for (int32_t i = 0; i < members; i++) {
        int32_t member = (self + i) % members, part;
        while ((part = take_part(&pool->workers[member], ticket)) >= 0) {
            int32_t status = run_part(pool, ticket, member, part, self), place = member * cuts + part;
            count++;
            if (status == 0 || (failed && here->failed_part < place)) continue;
            failed = FAILED;
            here->failed_part = place;
            here->status = status;
        }
    }
    if (count == 0) return;
    atomic_store(&here->done, number_of(ticket) << NUMBER_SHIFT | failed | count);
    if (self == 0 || !atomic_load(&pool->waiting)) return;
    atomic_fetch_add(&pool->finished, 1);
    tc_wake(&pool->finished, 1);
}

static int has_spun(tc_pool *pool, int64_t start) {
    int64_t spent = tc_now() - start;
    return spent > BUSY_SPIN_NS || (spent > SPIN_NS && atomic_load_explicit(&pool->owner, memory_order_relaxed) == 0);
}

/* The ticket that follows: spins for it, then sleeps. */
static word await_ticket(tc_pool *pool, struct worker *worker, word old) {
    word now;
    int64_t start = tc_now();
    for (int spins = 1; (now = atomic_load_explicit(&pool->ticket, memory_order_acquire)) == old; spins++) {
        tc_relax();
        if (spins % SPINS_PER_CLOCK == 0 && has_spun(pool, start)) break;
    }
    while (now == old) {
        atomic_store(&worker->asleep, 1);
        if (atomic_load(&pool->ticket) == old) tc_wait(&worker->asleep, 1);
        atomic_store(&worker->asleep, 0);
        now = atomic_load(&pool->ticket);
    }
    return now;
}

static void worker_body(void *argument) {
    struct worker *worker = argument;
    tc_pool *pool = worker->pool;
    word ticket = worker->ticket;
    tc_float_enter();
    for (;;) {
        ticket = await_ticket(pool, worker, ticket);
        if (atomic_load(&pool->stop)) return;
        work(pool, worker->index, ticket);
    }
}

/* Starts workers: at first, and after a fork. Where the OS gives fewer, those and the caller do all parts. */
static void start_workers(tc_pool *pool) {
    unsigned generation = tc_fork_generation();
    if (pool->generation != generation) {
        pool->generation = generation;
        pool->started = 0;
        pool->wanted = pool->threads - 1;
        atomic_store(&pool->waiting, 0);
    }
    while (pool->started < pool->wanted) {
        struct worker *worker = &pool->workers[pool->started + 1];
        worker->index = pool->started + 1;
        worker->pool = pool;
        worker->ticket = atomic_load(&pool->ticket);
        atomic_store(&worker->asleep, 0);
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

/* What the thread said of the job, 0: nothing yet. */
static word said(const struct worker *worker, word ticket) {
    word done = atomic_load(&worker->done);
    return number_of(done) == number_of(ticket) ? done & (FAILED | LOW_BITS(COUNT_BITS)) : 0;
}

static int is_over(const tc_pool *pool, word ticket) {
    int32_t members = members_in(ticket);
    word left = (word)members * (word)cuts_in(ticket);
    for (int32_t i = 0; i < members && left > 0; i++) left -= said(&pool->workers[i], ticket) & LOW_BITS(COUNT_BITS);
    return left == 0;
}

static void await_parts(tc_pool *pool, word ticket) {
    int64_t start = tc_now();
    for (int spins = 1; !is_over(pool, ticket); spins++) {
        tc_relax();
        if (spins % SPINS_PER_CLOCK != 0 || tc_now() - start < SPIN_NS) continue;
        atomic_store(&pool->waiting, 1);
        unsigned finished = atomic_load(&pool->finished);
        if (!is_over(pool, ticket)) tc_wait(&pool->finished, finished);
        atomic_store(&pool->waiting, 0);
    }
}

/* The status of the first part that failed. */
static int32_t first_failure(const tc_pool *pool, word ticket) {
    const struct worker *first = NULL;
    for (int32_t i = 0; i < members_in(ticket); i++) {
        const struct worker *worker = &pool->workers[i];
        if ((said(worker, ticket) & FAILED) && (first == NULL || worker->failed_part < first->failed_part)) first = worker;
    }
    return first == NULL ? 0 : first->status;
}

/* The time of the part that a thread takes next, of those that a count has not yet taken: that is then negative. */
static int64_t *next_part(const tc_pool *pool, int32_t members, int32_t cuts, int32_t self) {
    for (int32_t i = 0; i < members * cuts; i++) {
        int64_t *spent = &pool->workers[(self + i / cuts) % members].spent[i % cuts];
        if (*spent >= 0) return spent;
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
        int64_t *part = next_part(pool, members, cuts, idle);
        pool->workers[idle].load += *part;
        spent->busy += *part;
        *part = -1;
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
    pool->job = *job;
    word ticket = next_ticket(pool, (int32_t)members, cuts);
    publish(pool, ticket);
    work(pool, 0, ticket);
    await_parts(pool, ticket);
    int32_t status = first_failure(pool, ticket);
    if (job->spent != NULL) count_spent(pool, (int32_t)members, cuts);
    atomic_store_explicit(&pool->owner, 0, memory_order_release);
    return status;
}
