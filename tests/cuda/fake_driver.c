/* The functions of the CUDA driver that the runtime calls, on host memory: argument types and order are checked by using them.
   A module is the text of its image; every kernel adds 1 to the bytes of its first argument, as many as its second says. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
typedef uint64_t CUdeviceptr;
typedef struct { CUdeviceptr address; int64_t count; } launch_record;
static size_t used, limit = 1 << 20;
static int current, capturing, shared_limit;
static launch_record captured[64];
static int captured_count;
static struct { size_t size; CUdeviceptr address; } blocks[256];

#define EXPORT __attribute__((visibility("default")))
EXPORT int fake_last_grid[3], fake_last_block[3], fake_last_shared;
EXPORT int fake_shared_limit(void) { return shared_limit; }
EXPORT size_t fake_used(void) { return used; }
EXPORT int fake_pinned;

EXPORT CUresult cuGetErrorName(CUresult e, const char **s) { *s = e == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : e == 218 ? "CUDA_ERROR_INVALID_PTX" : "CUDA_ERROR_UNKNOWN"; return 0; }
EXPORT CUresult cuGetErrorString(CUresult e, const char **s) { *s = "said the driver"; return 0; }
EXPORT CUresult cuCtxSetCurrent(void *c) { current = c == (void *)0x1234; return current ? 0 : 201; }
EXPORT CUresult cuMemGetInfo_v2(size_t *f, size_t *t) { *f = limit - used; *t = limit; return 0; }
EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *p, size_t n) {
    if (!current) return 201;
    if (n == 0 || used + n > limit) return n ? 2 : 1;
    for (int i = 0; i < 256; i++)
        if (!blocks[i].address) {
            blocks[i].size = n;
            used += n;
            return (*p = blocks[i].address = (CUdeviceptr)(uintptr_t)aligned_alloc(256, (n + 255) / 256 * 256)) ? 0 : 2;
        }
    return 2;
}
EXPORT CUresult cuMemFree_v2(CUdeviceptr p) {
    for (int i = 0; i < 256; i++)
        if (blocks[i].address == p) {
            used -= blocks[i].size;
            blocks[i].address = 0;
            free((void *)(uintptr_t)p);
            return 0;
        }
    return 1;
}
EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr d, const void *s, size_t n, void *stream) { memcpy((void *)(uintptr_t)d, s, n); return 0; }
EXPORT CUresult cuMemcpyDtoHAsync_v2(void *d, CUdeviceptr s, size_t n, void *stream) { memcpy(d, (void *)(uintptr_t)s, n); return 0; }
EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr d, CUdeviceptr s, size_t n, void *stream) { memmove((void *)(uintptr_t)d, (void *)(uintptr_t)s, n); return 0; }
EXPORT CUresult cuMemsetD8Async(CUdeviceptr d, unsigned char v, size_t n, void *stream) { memset((void *)(uintptr_t)d, v, n); return 0; }
EXPORT CUresult cuPointerGetAttribute(void *data, int attribute, CUdeviceptr p) { *(unsigned *)data = 1; return attribute == 2 && fake_pinned ? 0 : 1; }
EXPORT CUresult cuModuleLoadDataEx(void **m, const void *image, unsigned n, int *options, void **values) {
    if (n != 2 || options[0] != 5 || options[1] != 6) return 1;
    if (memcmp(image, "bad", 3) == 0) {
        if ((size_t)(uintptr_t)values[1] > 20) strcpy(values[0], "line 1: not PTX");
        return 218;
    }
    *m = (void *)0x51;
    return 0;
}
EXPORT CUresult cuModuleUnload(void *m) { return m == (void *)0x51 ? 0 : 1; }
EXPORT CUresult cuModuleGetFunction(void **f, void *m, const char *name) { *f = (void *)0xF1; return strcmp(name, "missing") ? 0 : 500; }
EXPORT CUresult cuFuncSetAttribute(void *f, int attribute, int value) { if (attribute == 8) shared_limit = value; return attribute == 8 ? 0 : 1; }
static void work(launch_record r) { for (int64_t i = 0; i < r.count; i++) ((unsigned char *)(uintptr_t)r.address)[i]++; }
EXPORT CUresult cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *stream, void **params, void **extra) {
    int grid[3] = {gx, gy, gz}, block[3] = {bx, by, bz};
    memcpy(fake_last_grid, grid, sizeof grid);
    memcpy(fake_last_block, block, sizeof block);
    fake_last_shared = shared;
    if (f != (void *)0xF1 || extra) return 1;
    launch_record r = {*(CUdeviceptr *)params[0], *(int64_t *)params[1]};
    if (capturing) captured[captured_count++] = r;
    else work(r);
    return 0;
}
EXPORT CUresult cuStreamCreate(void **s, unsigned flags) { static uintptr_t next = 0x100; *s = (void *)next++; return flags == 1 ? 0 : 1; }
EXPORT CUresult cuStreamDestroy_v2(void *s) { return s ? 0 : 1; }
EXPORT CUresult cuStreamSynchronize(void *s) { return capturing ? 900 : 0; }
EXPORT CUresult cuStreamBeginCapture_v2(void *s, int mode) { capturing = 1; captured_count = 0; return s && mode == 1 ? 0 : 1; }
EXPORT CUresult cuStreamEndCapture(void *s, void **graph) { capturing = 0; *graph = (void *)0x6; return 0; }
EXPORT CUresult cuGraphInstantiateWithFlags(void **e, void *graph, unsigned long long flags) { *e = (void *)0x7; return graph == (void *)0x6 && !flags ? 0 : 1; }
EXPORT CUresult cuGraphLaunch(void *e, void *s) { for (int i = 0; i < captured_count; i++) work(captured[i]); return e == (void *)0x7 ? 0 : 1; }
EXPORT CUresult cuGraphExecDestroy(void *e) { return e == (void *)0x7 ? 0 : 1; }
EXPORT CUresult cuGraphDestroy(void *g) { return g == (void *)0x6 ? 0 : 1; }
EXPORT CUresult cuEventCreate(void **e, unsigned flags) { static uintptr_t next = 1; *e = (void *)next++; return flags; }
EXPORT CUresult cuEventRecord(void *e, void *s) { return e ? 0 : 1; }
EXPORT CUresult cuEventSynchronize(void *e) { return e ? 0 : 1; }
EXPORT CUresult cuEventElapsedTime(float *ms, void *a, void *b) { *ms = (float)((uintptr_t)b - (uintptr_t)a); return 0; }
EXPORT CUresult cuEventDestroy_v2(void *e) { return e ? 0 : 1; }
