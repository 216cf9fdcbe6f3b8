/* The functions of the CUDA driver that the runtime calls, on host memory: argument types and order are checked by using them.

   Streams are late: work runs when somebody waits for its stream, so that whoever reads without waiting reads what was there before.
   Every call needs a context that is current in its thread. A module is the path of a library of the shim (``shim_build.py``), whose
   kernels are called, or any other text: then every kernel adds 1 to the bytes of its first argument, as many as its second says. */
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
typedef uint64_t CUdeviceptr;
enum { INVALID = 1, NO_MEMORY = 2, NO_CONTEXT = 201, NO_SUCH = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700, CAPTURING = 900 };
enum { ARGUMENTS = 128, CONTEXT = 0x1234 };
typedef int (*shim_kernel)(const long long *, const unsigned *, const unsigned *, unsigned, char *);
typedef struct { shim_kernel run; int words, shared_limit; char name[128]; } function;
typedef struct { void *library; } module;
typedef struct { enum { KERNEL, COPY, FILL, MARK } what; function *f; long long words[ARGUMENTS]; unsigned grid[3], block[3], shared;
                 void *to; const void *from; size_t size; int byte, owned; struct event *event; } work;
typedef struct event { int asked, done; double when; } event;
typedef struct { work *items; int count, room; } list;
typedef struct stream { list queue; int capturing, alive; list captured; } stream;
typedef struct { list work; } graph;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local int depth;
static _Thread_local void *contexts[32];
static stream streams[256];  /* 0: the default one */
static struct { size_t size; CUdeviceptr address; } blocks[4096];
static size_t used, limit = 1 << 20;
static double clock_now;
static int failure;

#define EXPORT __attribute__((visibility("default")))
EXPORT int fake_last_grid[3], fake_last_block[3], fake_last_shared, fake_pinned, fake_graphs, fake_launches, fake_uploads, fake_downloads;
EXPORT size_t fake_used(void) { return used; }
EXPORT void fake_set_limit(size_t bytes) { limit = bytes; }
EXPORT int fake_depth(void) { return depth; }
EXPORT int fake_streams(void) { int n = 0; for (int i = 1; i < 256; i++) n += streams[i].alive; return n; }

#define ENTER pthread_mutex_lock(&lock)
#define LEAVE(status) do { int status_ = (status); pthread_mutex_unlock(&lock); return status_; } while (0)
#define NEED(condition, status) do { if (!(condition)) LEAVE(status); } while (0)
#define NEED_CONTEXT NEED(depth > 0 && contexts[depth - 1] == (void *)CONTEXT, NO_CONTEXT)

static stream *of(void *handle) {
    uintptr_t n = (uintptr_t)handle;
    return n == 0 || n == 1 ? &streams[0] : n >= 0x100 && n < 0x200 && streams[n - 0x100].alive ? &streams[n - 0x100] : NULL;
}
static int inside(CUdeviceptr p, size_t n) {
    for (int i = 0; i < 4096; i++)
        if (blocks[i].address && p >= blocks[i].address && p + n <= blocks[i].address + blocks[i].size) return 1;
    return 0;
}
static void add(list *to, work item) {
    if (to->count == to->room) to->items = realloc(to->items, (to->room = to->room ? 2 * to->room : 16) * sizeof(work));
    to->items[to->count++] = item;
}
static void run(work *item) {
    char message[512];
    switch (item->what) {
    case KERNEL:
        fake_launches++;
        if (!item->f->run) for (long long i = 0; i < item->words[1]; i++) ((unsigned char *)item->words[0])[i]++;
        else if (item->f->run(item->words, item->grid, item->block, item->shared, message)) { failure = ILLEGAL_ADDRESS; fprintf(stderr, "%s\n", message); }
        break;
    case COPY: memmove(item->to, item->from, item->size); break;
    case FILL: memset(item->to, item->byte, item->size); break;
    case MARK: item->event->done = item->event->asked; item->event->when = ++clock_now; break;
    }
    if (item->owned) free((void *)item->from);
}
static void finish(stream *s) {
    for (int i = 0; i < s->queue.count; i++) run(&s->queue.items[i]);
    s->queue.count = 0;
}
static CUresult start(void *handle, work item) {
    stream *s = of(handle);
    if (!s) return INVALID;
    add(s->capturing ? &s->captured : &s->queue, item);
    return 0;
}

EXPORT CUresult cuGetErrorName(CUresult e, const char **s) {
    *s = e == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : e == 201 ? "CUDA_ERROR_INVALID_CONTEXT" : e == 218 ? "CUDA_ERROR_INVALID_PTX" : e == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_UNKNOWN";
    return 0;
}
EXPORT CUresult cuGetErrorString(CUresult e, const char **s) { *s = "said the driver"; return 0; }
EXPORT CUresult cuCtxPushCurrent_v2(void *c) { if (depth == 32) return INVALID; contexts[depth++] = c; return c ? 0 : NO_CONTEXT; }
EXPORT CUresult cuCtxPopCurrent_v2(void **c) { if (!depth) return NO_CONTEXT; *c = contexts[--depth]; return 0; }

/* Memory */
EXPORT CUresult cuMemGetInfo_v2(size_t *f, size_t *t) { ENTER; NEED_CONTEXT; *f = limit - used; *t = limit; LEAVE(0); }
EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *p, size_t n) {
    ENTER; NEED_CONTEXT;
    NEED(n, INVALID);
    NEED(used + n <= limit, NO_MEMORY);
    for (int i = 0; i < 4096; i++)
        if (!blocks[i].address) {
            blocks[i].size = n;
            blocks[i].address = (CUdeviceptr)(uintptr_t)aligned_alloc(256, (n + 255) / 256 * 256);
            NEED(blocks[i].address, NO_MEMORY);
            used += n;
            memset((void *)(uintptr_t)blocks[i].address, 0xCD, n);
            *p = blocks[i].address;
            LEAVE(0);
        }
    LEAVE(NO_MEMORY);
}
EXPORT CUresult cuMemFree_v2(CUdeviceptr p) {
    ENTER; NEED_CONTEXT;
    for (int i = 0; i < 4096; i++)
        if (blocks[i].address && blocks[i].address == p) {
            for (int k = 0; k < 256; k++) finish(&streams[k]);  /* as the driver does */
            used -= blocks[i].size;
            memset((void *)(uintptr_t)p, 0xDD, blocks[i].size);
            blocks[i].address = 0;
            free((void *)(uintptr_t)p);
            LEAVE(0);
        }
    LEAVE(INVALID);
}
EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr d, const void *s, size_t n, void *handle) {
    ENTER; NEED_CONTEXT;
    NEED(inside(d, n) && of(handle), INVALID);
    NEED(!of(handle)->capturing, CAPTURING);
    fake_uploads++;
    const void *from = fake_pinned ? s : memcpy(malloc(n + 1), s, n);  /* pinned memory is read late */
    LEAVE(start(handle, (work){.what = COPY, .to = (void *)(uintptr_t)d, .from = from, .size = n, .owned = !fake_pinned}));
}
EXPORT CUresult cuMemcpyDtoHAsync_v2(void *d, CUdeviceptr s, size_t n, void *handle) {
    ENTER; NEED_CONTEXT;
    NEED(inside(s, n) && of(handle), INVALID);
    NEED(!of(handle)->capturing, CAPTURING);
    fake_downloads++;
    LEAVE(start(handle, (work){.what = COPY, .to = d, .from = (void *)(uintptr_t)s, .size = n}));
}
EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr d, CUdeviceptr s, size_t n, void *handle) {
    ENTER; NEED_CONTEXT;
    NEED(inside(d, n) && inside(s, n), INVALID);
    LEAVE(start(handle, (work){.what = COPY, .to = (void *)(uintptr_t)d, .from = (void *)(uintptr_t)s, .size = n}));
}
EXPORT CUresult cuMemsetD8Async(CUdeviceptr d, unsigned char v, size_t n, void *handle) {
    ENTER; NEED_CONTEXT;
    NEED(inside(d, n), INVALID);
    LEAVE(start(handle, (work){.what = FILL, .to = (void *)(uintptr_t)d, .byte = v, .size = n}));
}
EXPORT CUresult cuPointerGetAttribute(void *data, int attribute, CUdeviceptr p) { ENTER; NEED_CONTEXT; *(unsigned *)data = 1; LEAVE(attribute == 2 && fake_pinned ? 0 : INVALID); }

/* Code */
EXPORT CUresult cuModuleLoadDataEx(void **m, const void *image, unsigned n, int *options, void **values) {
    ENTER; NEED_CONTEXT;
    NEED(n == 2 && options[0] == 5 && options[1] == 6, INVALID);
    if (memcmp(image, "bad", 3) == 0) {
        if ((size_t)(uintptr_t)values[1] > 20) strcpy(values[0], "line 1: not PTX");
        LEAVE(218);
    }
    module *made = calloc(1, sizeof *made);
    if (*(const char *)image == '/') NEED((made->library = dlopen(image, RTLD_NOW | RTLD_LOCAL)), 200);
    *m = made;
    LEAVE(0);
}
EXPORT CUresult cuModuleUnload(void *m) { ENTER; NEED_CONTEXT; for (int k = 0; k < 256; k++) finish(&streams[k]); free(m); LEAVE(m ? 0 : INVALID); }
EXPORT CUresult cuModuleGetFunction(void **f, void *m, const char *name) {
    ENTER; NEED_CONTEXT;
    NEED(strcmp(name, "missing"), NO_SUCH);
    function *made = calloc(1, sizeof *made);
    made->words = 2;
    if (((module *)m)->library) {
        char symbol[256];
        snprintf(symbol, sizeof symbol, "shim_launch_%s", name);
        NEED((made->run = (shim_kernel)dlsym(((module *)m)->library, symbol)), NO_SUCH);
        snprintf(symbol, sizeof symbol, "shim_words_%s", name);
        made->words = *(int *)dlsym(((module *)m)->library, symbol);
    }
    *f = made;
    LEAVE(0);
}
EXPORT CUresult cuFuncSetAttribute(void *f, int attribute, int value) {
    ENTER; NEED_CONTEXT;
    NEED(attribute == 8 && value <= 227 * 1024, INVALID);
    ((function *)f)->shared_limit = value;
    LEAVE(0);
}
EXPORT CUresult cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *handle, void **params, void **extra) {
    ENTER; NEED_CONTEXT;
    function *called = f;
    NEED(f && !extra && gx && gy && gz && gy < 65536 && gz < 65536 && bx && by && bz && bx * by * bz <= 1024, INVALID);
    NEED(shared <= 48 * 1024 || (int)shared <= called->shared_limit, INVALID);
    work item = {.what = KERNEL, .f = called, .grid = {gx, gy, gz}, .block = {bx, by, bz}, .shared = shared};
    NEED(called->words <= ARGUMENTS, INVALID);
    for (int i = 0; i < called->words; i++) item.words[i] = *(long long *)params[i];  /* the caller's memory is its own again */
    memcpy(fake_last_grid, item.grid, sizeof item.grid);
    memcpy(fake_last_block, item.block, sizeof item.block);
    fake_last_shared = shared;
    LEAVE(start(handle, item));
}

/* Streams */
EXPORT CUresult cuStreamCreate(void **s, unsigned flags) {
    ENTER; NEED_CONTEXT;
    NEED(flags == 1, INVALID);
    for (uintptr_t i = 1; i < 256; i++)
        if (!streams[i].alive) { streams[i].alive = 1; *s = (void *)(0x100 + i); LEAVE(0); }
    LEAVE(NO_MEMORY);
}
EXPORT CUresult cuStreamDestroy_v2(void *s) { ENTER; NEED_CONTEXT; NEED(s && of(s), INVALID); finish(of(s)); of(s)->alive = 0; LEAVE(0); }
EXPORT CUresult cuStreamSynchronize(void *s) { ENTER; NEED_CONTEXT; NEED(of(s), INVALID); NEED(!of(s)->capturing, CAPTURING); finish(of(s)); LEAVE(failure); }
EXPORT CUresult cuStreamBeginCapture_v2(void *s, int mode) {
    ENTER; NEED_CONTEXT;
    NEED((uintptr_t)s > 1 && of(s) && mode == 2 && !of(s)->capturing, INVALID);
    of(s)->capturing = 1;
    of(s)->captured = (list){0};
    LEAVE(0);
}
EXPORT CUresult cuStreamEndCapture(void *s, void **made) {
    ENTER; NEED_CONTEXT;
    NEED(of(s) && of(s)->capturing, INVALID);
    of(s)->capturing = 0;
    graph *g = calloc(1, sizeof *g);
    g->work = of(s)->captured;
    *made = g;
    LEAVE(0);
}
EXPORT CUresult cuGraphInstantiateWithFlags(void **e, void *g, unsigned long long flags) {
    ENTER; NEED_CONTEXT;
    NEED(!flags, INVALID);
    graph *made = calloc(1, sizeof *made);
    for (int i = 0; i < ((graph *)g)->work.count; i++) add(&made->work, ((graph *)g)->work.items[i]);
    *e = made;
    fake_graphs++;
    LEAVE(0);
}
EXPORT CUresult cuGraphLaunch(void *e, void *s) {
    ENTER; NEED_CONTEXT;
    NEED(e && of(s) && !of(s)->capturing, INVALID);
    for (int i = 0; i < ((graph *)e)->work.count; i++) add(&of(s)->queue, ((graph *)e)->work.items[i]);
    LEAVE(0);
}
EXPORT CUresult cuGraphExecDestroy(void *e) { ENTER; NEED_CONTEXT; free(((graph *)e)->work.items); free(e); LEAVE(0); }
EXPORT CUresult cuGraphDestroy(void *g) { ENTER; NEED_CONTEXT; free(((graph *)g)->work.items); free(g); LEAVE(0); }

/* Events */
EXPORT CUresult cuEventCreate(void **e, unsigned flags) { ENTER; NEED_CONTEXT; *e = calloc(1, sizeof(event)); LEAVE(flags ? INVALID : 0); }
EXPORT CUresult cuEventRecord(void *e, void *s) { ENTER; NEED_CONTEXT; ((event *)e)->asked++; LEAVE(start(s, (work){.what = MARK, .event = e})); }
EXPORT CUresult cuEventSynchronize(void *e) { ENTER; NEED_CONTEXT; if (((event *)e)->done < ((event *)e)->asked) for (int k = 0; k < 256; k++) finish(&streams[k]); LEAVE(failure); }
EXPORT CUresult cuEventElapsedTime(float *ms, void *a, void *b) {
    ENTER; NEED_CONTEXT;
    NEED(((event *)a)->asked && ((event *)b)->asked, INVALID);
    NEED(((event *)a)->done && ((event *)b)->done, NOT_READY);
    *ms = (float)(((event *)b)->when - ((event *)a)->when);
    LEAVE(0);
}
EXPORT CUresult cuEventDestroy_v2(void *e) { ENTER; NEED_CONTEXT; for (int k = 0; k < 256; k++) finish(&streams[k]); free(e); LEAVE(0); }
