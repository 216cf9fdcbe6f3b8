/* Memory, clocks, sleeping, threads and forks on Linux, macOS and Windows. */
#if defined(__linux__)
#define _GNU_SOURCE
#endif

#include "platform.h"

#include "tcompile.h"

#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <malloc.h>
#include <windows.h>
#else
#include <pthread.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#endif

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

void *tc_alloc(int64_t bytes) {
    if (bytes < 0 || (uint64_t)bytes > (uint64_t)(PTRDIFF_MAX - TC_ALIGN)) return NULL;
    size_t size = ((size_t)bytes + TC_ALIGN) & ~(size_t)(TC_ALIGN - 1);
#if defined(_WIN32)
    return _aligned_malloc(size, TC_ALIGN);
#else
    void *block = NULL;
    return posix_memalign(&block, TC_ALIGN, size) == 0 ? block : NULL;
#endif
}

void tc_free(void *block) {
#if defined(_WIN32)
    _aligned_free(block);
#else
    free(block);
#endif
}

#if defined(_WIN32)

void *tc_map_code(const void *code, size_t size) {
    DWORD old;
    void *block = VirtualAlloc(NULL, size, MEM_COMMIT | MEM_RESERVE, PAGE_READWRITE);
    if (block == NULL) return NULL;
    memcpy(block, code, size);
    if (!VirtualProtect(block, size, PAGE_EXECUTE_READ, &old)) {
        VirtualFree(block, 0, MEM_RELEASE);
        return NULL;
    }
    FlushInstructionCache(GetCurrentProcess(), block, size);
    return block;
}

void tc_unmap_code(void *code, size_t size) {
    (void)size;
    VirtualFree(code, 0, MEM_RELEASE);
}

int64_t tc_now(void) {
    LARGE_INTEGER frequency, ticks;
    QueryPerformanceFrequency(&frequency);
    QueryPerformanceCounter(&ticks);
    int64_t seconds = ticks.QuadPart / frequency.QuadPart, rest = ticks.QuadPart % frequency.QuadPart;
    return seconds * 1000000000 + rest * 1000000000 / frequency.QuadPart;
}

int64_t tc_now_coarse(void) { return (int64_t)GetTickCount64() * 1000000; }

int64_t tc_read_clock(int32_t clock) {
    FILETIME created, ended, kernel, user;
    if (clock != TC_CLOCK_CPU || !GetThreadTimes(GetCurrentThread(), &created, &ended, &kernel, &user)) return tc_now();
    ULARGE_INTEGER spent = {.LowPart = user.dwLowDateTime, .HighPart = user.dwHighDateTime};
    return (int64_t)spent.QuadPart * 100;
}

void tc_wait(atomic_uint *word, unsigned expected) { WaitOnAddress((volatile VOID *)word, &expected, sizeof expected, INFINITE); }

void tc_wake(atomic_uint *word, int sleepers) {
    (void)sleepers;
    WakeByAddressAll((PVOID)word);
}

static DWORD WINAPI run_thread(LPVOID raw) {
    tc_thread *thread = raw;
    thread->body(thread->argument);
    return 0;
}

int tc_thread_start(tc_thread *thread, void (*body)(void *), void *argument) {
    thread->body = body;
    thread->argument = argument;
    HANDLE handle = CreateThread(NULL, 0, run_thread, thread, 0, NULL);
    thread->handle = (uint64_t)(uintptr_t)handle;
    return handle == NULL ? -1 : 0;
}

void tc_thread_join(tc_thread *thread) {
    WaitForSingleObject((HANDLE)(uintptr_t)thread->handle, INFINITE);
    CloseHandle((HANDLE)(uintptr_t)thread->handle);
}

unsigned tc_fork_generation(void) { return 0; }

#else

static size_t page_round(size_t size) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (size + page - 1) / page * page;
}

void *tc_map_code(const void *code, size_t size) {
    size_t bytes = page_round(size);
    char *block = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) return NULL;
    memcpy(block, code, size);
    if (mprotect(block, bytes, PROT_READ | PROT_EXEC) != 0) {
        munmap(block, bytes);
        return NULL;
    }
    __builtin___clear_cache(block, block + size);
    return block;
}

void tc_unmap_code(void *code, size_t size) { munmap(code, page_round(size)); }

static int64_t read_clock(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t tc_now(void) { return read_clock(CLOCK_MONOTONIC); }

int64_t tc_read_clock(int32_t clock) { return read_clock(clock == TC_CLOCK_CPU ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC); }

#if defined(CLOCK_MONOTONIC_COARSE)
int64_t tc_now_coarse(void) { return read_clock(CLOCK_MONOTONIC_COARSE); }
#else
int64_t tc_now_coarse(void) { return tc_now(); }
#endif

static atomic_uint fork_generation;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

#if defined(__linux__)

void tc_wait(atomic_uint *word, unsigned expected) { syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0); }

void tc_wake(atomic_uint *word, int sleepers) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, sleepers, NULL, NULL, 0); }

static void after_fork(void) { atomic_fetch_add(&fork_generation, 1); }

#else /* one place to sleep for all words: pools are few */

static pthread_mutex_t sleep_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t sleep_cond = PTHREAD_COND_INITIALIZER;

void tc_wait(atomic_uint *word, unsigned expected) {
    pthread_mutex_lock(&sleep_mutex);
    if (atomic_load(word) == expected) pthread_cond_wait(&sleep_cond, &sleep_mutex);
    pthread_mutex_unlock(&sleep_mutex);
}

void tc_wake(atomic_uint *word, int sleepers) {
    (void)word, (void)sleepers;
    pthread_mutex_lock(&sleep_mutex);
    pthread_cond_broadcast(&sleep_cond);
    pthread_mutex_unlock(&sleep_mutex);
}

static void after_fork(void) {
    pthread_mutex_init(&sleep_mutex, NULL);
    pthread_cond_init(&sleep_cond, NULL);
    atomic_fetch_add(&fork_generation, 1);
}

#endif

static void watch_forks(void) { pthread_atfork(NULL, NULL, after_fork); }

unsigned tc_fork_generation(void) {
    pthread_once(&fork_once, watch_forks);
    return atomic_load(&fork_generation);
}

static void *run_thread(void *raw) {
    tc_thread *thread = raw;
    thread->body(thread->argument);
    return NULL;
}

int tc_thread_start(tc_thread *thread, void (*body)(void *), void *argument) {
    pthread_t handle;
    thread->body = body;
    thread->argument = argument;
    int failed = pthread_create(&handle, NULL, run_thread, thread);
    if (!failed) memcpy(&thread->handle, &handle, sizeof handle);
    _Static_assert(sizeof handle <= sizeof thread->handle, "a thread handle fits");
    return failed;
}

void tc_thread_join(tc_thread *thread) {
    pthread_t handle;
    memcpy(&handle, &thread->handle, sizeof handle);
    pthread_join(handle, NULL);
}

#endif

void tc_relax(void) {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb"); /* waits some cycles; yield does nothing on most cores */
#endif
}

uint64_t tc_float_enter(void) {
#if defined(__x86_64__) || defined(_M_X64)
    uint64_t old = _mm_getcsr();
    _mm_setcsr(0x1F80);
    return old;
#elif defined(__aarch64__) && !defined(_WIN32)
    uint64_t old;
    __asm__ volatile("mrs %0, fpcr" : "=r"(old));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
    return old;
#else
    return 0;
#endif
}

void tc_float_leave(uint64_t state) {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_setcsr((unsigned)state);
#elif defined(__aarch64__) && !defined(_WIN32)
    __asm__ volatile("msr fpcr, %0" : : "r"(state));
#else
    (void)state;
#endif
}
