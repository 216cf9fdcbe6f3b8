// The threads of a block, or of the blocks of a cluster: as fibers where they meet, else in turn.
#pragma once
#include <sys/mman.h>
#include <cstdarg>
#include <type_traits>
#include <vector>

namespace shim {

struct Index { unsigned x, y, z; };
static Index thread_index, block_index;

// Failures ---------------------------------------------------------------------------------------------------

static char message[512];
static bool failed;
static const char *kernel_name = "";
struct Failure {};

static void leave_failed();

// Stops the launch with a message that says where it was.
[[noreturn]] static __attribute__((noinline, cold)) void fail(const char *format, ...) {
    int used = snprintf(message, sizeof message, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u): ", kernel_name,
                        block_index.x, block_index.y, block_index.z, thread_index.x, thread_index.y, thread_index.z);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message + used, sizeof message - used, format, arguments);
    va_end(arguments);
    failed = true;
    leave_failed();
    __builtin_unreachable();
}

// Fibers -----------------------------------------------------------------------------------------------------

extern "C" void shim_switch(void **save, void *load) __attribute__((visibility("hidden")));
#if defined(__x86_64__)
__asm__(R"(
.text
.hidden shim_switch
.globl shim_switch
.type shim_switch, @function
shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size shim_switch, .-shim_switch
)");
#else
#error "the shim's fibers are written for x86-64"
#endif

enum State : char { READY, AT_BARRIER, AT_CLUSTER, AT_WARP, DONE };
enum Meeting : char { SHUFFLE, SYNCWARP, TILE, WARPGROUP };

struct Copy { void *to; const void *from; int bytes; bool mask; long long cell; void *shared; };

// One thread that meets others.
struct Fiber {
    void *stack_pointer;
    State state;
    Index thread, block;
    int line;          // where it waits
    Meeting meeting;   // what for
    const void *tag;   // which tile operation
    void *parts[4];    // what it brought there
    std::vector<Copy> copies;     // asynchronous copies not yet written
    std::vector<size_t> groups;   // the number of copies up to each commit
};

constexpr size_t STACK = 256 * 1024;
constexpr int MOST_BLOCKS = 8;  // of a cluster
constexpr int MOST_FIBERS = MOST_BLOCKS * 1024;
static Fiber fibers[MOST_FIBERS];
static char *stacks;
static void *scheduler;
static int current = -1;  // the fiber that runs; -1: threads run in turn
static int threads, alive;  // of all blocks that run together
static int block_threads;
static int current_block;            // of the cluster, that of the fiber that runs
static unsigned epochs[MOST_BLOCKS];  // of each block: barriers passed so far
static unsigned warp_epoch[MOST_FIBERS / 32];
static void (*body)(const void *);
static const void *closure;

static void leave_failed() {
    if (current < 0) throw Failure();
    void *unused;
    shim_switch(&unused, scheduler);
}

static inline unsigned epoch() { return epochs[current_block]; }

// What belongs to the thread that runs now.
static inline void enter(const Fiber &fiber) {
    thread_index = fiber.thread;
    block_index = fiber.block;
    current_block = current / block_threads;
}

static inline int lanes_of(int warp) { return threads - 32 * warp < 32 ? threads - 32 * warp : 32; }

static void pause() {
    Fiber &me = fibers[current];
    const int number = current;
    shim_switch(&me.stack_pointer, scheduler);
    current = number;
    enter(me);
}

static void finish_copies(Fiber &me, size_t keep);
static bool products_left();   // of the four warps that run
static void begin_products();

static void start() {
    enter(fibers[current]);
    body(closure);
    Fiber &me = fibers[current];
    if (!me.copies.empty()) fail("returned with asynchronous copies that it has not awaited");
    if (products_left()) fail("returned with products of its warps that it has not awaited");
    me.state = DONE;
    --alive;
    void *unused;
    shim_switch(&unused, scheduler);
    __builtin_unreachable();
}

static void prepare(int number, Index thread, Index block) {
    if (!stacks) {
        stacks = (char *)mmap(nullptr, STACK * MOST_FIBERS, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    Fiber &fiber = fibers[number];
    // stacks begin at different cache sets
    void **top = (void **)(stacks + STACK * (number + 1) - 64 - 192 * (number % 16));
    *--top = nullptr;         // where start() would return to; also aligns its frame
    *--top = (void *)start;
    top -= 6;                 // the registers that the switch restores
    fiber.stack_pointer = top;
    fiber.state = READY;
    fiber.thread = thread;
    fiber.block = block;
    fiber.copies.clear();
    fiber.groups.clear();
}

// Waits at a meeting of the warp. True for the last to come, who does the work and lets the others go by release_warp.
static bool meet(Meeting meeting, const void *tag, int line, int size = 32) {
    Fiber &me = fibers[current];
    me.meeting = meeting;
    me.tag = tag;
    me.line = line;
    const int first = current / size * size, count = threads - first < size ? threads - first : size;
    bool last = true;
    for (int k = first; k < first + count; ++k) {
        if (k == current) continue;
        const Fiber &other = fibers[k];
        if (other.state != AT_WARP) { last = false; continue; }
        if (other.line != line || other.meeting != meeting || other.tag != tag)
            fail("divergent lanes: at line %d, while thread %d waits at line %d", line, k, other.line);
    }
    if (!last) {
        me.state = AT_WARP;
        pause();
    }
    return last;
}

static void release_warp(int size = 32) {
    const int first = current / size * size, count = threads - first < size ? threads - first : size;
    for (int k = first; k < first + count; ++k) fibers[k].state = READY;
}

static void run_ready(int number) {
    current = number;
    shim_switch(&scheduler, fibers[number].stack_pointer);
    current = -1;
}

static const char *what_stops(int *who, int *line) {
    for (int k = 0; k < threads; ++k)
        if (fibers[k].state == AT_WARP) { *who = k; *line = fibers[k].line; return "a shuffle, warp barrier or tile operation"; }
    for (int k = 0; k < threads; ++k)
        if (fibers[k].state == AT_BARRIER || fibers[k].state == AT_CLUSTER) { *who = k; *line = fibers[k].line; return "a barrier"; }
    return nullptr;
}

static void stuck() {
    int who = 0, line = 0;
    const char *what = what_stops(&who, &line);
    thread_index = fibers[who].thread;
    block_index = fibers[who].block;
    if (!failed) {
        failed = true;
        snprintf(message, sizeof message, "kernel %s, block (%u, %u, %u): divergent: thread %d waits at %s (line %d) that others do not reach",
                 kernel_name, block_index.x, block_index.y, block_index.z, who % block_threads, what ? what : "?", line);
    }
}

// Whether some threads all wait at one barrier, which then opens.
static bool open(State state, int first, int count) {
    for (int k = first; k < first + count; ++k)
        if (fibers[k].state != state || fibers[k].line != fibers[first].line) return false;
    for (int k = first; k < first + count; ++k) fibers[k].state = READY;
    for (int block = first / block_threads; block * block_threads < first + count; ++block) ++epochs[block];
    return true;
}

// Lets the threads of a block run until all wait or are done. True if any did.
static bool run_block(int start) {
    bool progress = false;
    for (int first = start; first < start + block_threads && !failed; first += 32)
        for (bool again = true; again && !failed;) {
            again = false;
            for (int k = first; k < first + lanes_of(first / 32) && !failed; ++k)
                if (fibers[k].state == READY) { run_ready(k); again = progress = true; }
        }
    return progress;
}

// ``cluster`` blocks, neighbours in x, the first of which is the current one.
static void run_fibers(Index extents, int cluster) {
    block_threads = extents.x * extents.y * extents.z;
    if (cluster > 1 && block_threads % 32) fail("a cluster of blocks of %d threads, no multiple of 32", block_threads);
    threads = alive = block_threads * cluster;
    const Index first_block = block_index;
    for (int k = 0; k < threads; ++k) {
        const unsigned t = k % block_threads;
        prepare(k, {t % extents.x, t / extents.x % extents.y, t / (extents.x * extents.y)},
                {first_block.x + k / block_threads, first_block.y, first_block.z});
    }
    begin_products();
    for (unsigned &one : epochs) ++one;
    while (alive && !failed) {
        bool progress = false;
        // each block as far as it comes without the others: what it does not wait for is not there yet
        for (int start = 0; start < threads && !failed; start += block_threads)
            do progress |= run_block(start);
            while (!failed && open(AT_BARRIER, start, block_threads));
        if (failed || !alive) break;
        if (!open(AT_CLUSTER, 0, threads) && !progress) stuck();
    }
}

static void run_in_turn(Index extents) {
    threads = block_threads = 1;
    current_block = 0;
    for (unsigned z = 0; z < extents.z; ++z)
        for (unsigned y = 0; y < extents.y; ++y)
            for (unsigned x = 0; x < extents.x; ++x) {
                thread_index = {x, y, z};
                body(closure);
            }
}

static char *shared_bytes;
constexpr size_t SHARED = 256 * 1024;

// Runs a kernel over its grid, ``cluster`` blocks together. Returns 0, or 1 with a message.
template <typename Body> static int launch(const char *name, const unsigned *grid, const unsigned *block, bool meets, size_t shared, int cluster, const Body &run) {
    kernel_name = name;
    failed = false;
    body = [](const void *what) { (*(const Body *)what)(); };
    closure = &run;
    current = -1;
    if (shared && !shared_bytes) shared_bytes = (char *)mmap(nullptr, MOST_BLOCKS * SHARED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    const Index extents = {block[0], block[1], block[2]};
    try {
        for (unsigned z = 0; z < grid[2] && !failed; ++z)
            for (unsigned y = 0; y < grid[1] && !failed; ++y)
                for (unsigned x = 0; x < grid[0] && !failed; x += cluster) {
                    block_index = {x, y, z};
                    for (int k = 0; shared && k < cluster; ++k) memset(shared_bytes + k * SHARED, 0xff, shared);  // NaN, which shows
                    if (meets) run_fibers(extents, cluster); else run_in_turn(extents);
                }
    } catch (Failure) {
    }
    current = -1;
    return failed ? 1 : 0;
}

}  // namespace shim
