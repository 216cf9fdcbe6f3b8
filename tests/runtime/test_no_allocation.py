"""A run of prepared shapes allocates nothing: a C application counts every call of the allocator, in all threads."""

import io
import platform
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import tcompile
from tcompile.benchmarks.single_ops import Ask, build
from tcompile.pipeline import compile_artifact

NATIVE = Path(__file__).parents[2] / "runtime" / "native"
DEMO = Path(tcompile.__file__).parent / "demo" / "digits.onnx"
COMPILER = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) or shutil.which("cc")
pytestmark = pytest.mark.skipif(
    COMPILER is None or sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="counts the calls of glibc's allocator"
)

APPLICATION = r"""
#define _GNU_SOURCE
#include "tcompile.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t), *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);
static atomic_int calls;

void *malloc(size_t size) { calls++; return __libc_malloc(size); }
void *calloc(size_t count, size_t size) { calls++; return __libc_calloc(count, size); }
void *realloc(void *old, size_t size) { calls++; return __libc_realloc(old, size); }
void free(void *block) { calls += block != NULL; __libc_free(block); }
void *memalign(size_t align, size_t size) { calls++; return __libc_memalign(align, size); }
void *aligned_alloc(size_t align, size_t size) { calls++; return __libc_memalign(align, size); }
int posix_memalign(void **block, size_t align, size_t size) { calls++; return (*block = __libc_memalign(align, size)) == NULL; }
void *mmap(void *at, size_t size, int protection, int flags, int file, off_t offset) {
    calls++;
    return (void *)syscall(SYS_mmap, at, size, protection, flags, file, offset);
}

static void *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    char *bytes = aligned_alloc(64, (*size + 64) / 64 * 64);
    if (fread(bytes, 1, *size, file) != *size) exit(2);
    fclose(file);
    return bytes;
}

static int64_t bytes_of(const tc_tensor *tensor) {
    int64_t bytes = tensor->element_bytes;
    for (int32_t axis = 0; axis < tensor->rank; axis++) bytes *= tensor->extents[axis].value;
    return bytes;
}

int main(int count, char **arguments) {
    char error[512];
    size_t sizes[3];
    void *descriptor = read_file("descriptor.bin", &sizes[0]), *code = read_file("code.bin", &sizes[1]);
    void *weights = read_file("weights.bin", &sizes[2]);
    tc_module *module;
    if (count != 2 || tc_open(descriptor, sizes[0], code, sizes[1], weights, sizes[2], &module, error, sizeof error)) {
        puts(error);
        return 1;
    }
    const tc_module_info *info = tc_module_describe(module);
    tc_session *session = tc_session_new(module, tc_pool_new(atoi(arguments[1])));
    const void *inputs[8];
    void *outputs[8];
    tc_shape shapes[8];
    int64_t extents[8][8];
    for (int i = 0; i < info->input_count; i++) {
        for (int axis = 0; axis < info->inputs[i].rank; axis++) extents[i][axis] = info->inputs[i].extents[axis].value;
        shapes[i] = (tc_shape){extents[i], info->inputs[i].rank, info->inputs[i].dtype};
        inputs[i] = calloc(1, (size_t)bytes_of(&info->inputs[i]));
    }
    for (int i = 0; i < info->output_count; i++) outputs[i] = malloc((size_t)bytes_of(&info->outputs[i]));
    int before = calls, status = tc_session_prepare(session, shapes);
    int prepared = calls - before;
    status |= tc_session_run(session, inputs, outputs);
    int after = calls;
    for (int i = 0; i < 20; i++) status |= tc_session_run(session, inputs, outputs);
    int running = calls - after;
    printf("status %d, prepare %s, runs %d\n", status, prepared > 0 ? "allocates" : "allocates nothing", running);
    return 0;
}
"""

MODELS = {
    "digits": lambda: (str(DEMO), {"images": [3, 8, 8]}),
    "winograd": lambda: (build("conv2d", Ask((1, 32, 28, 28))), None),
    "strided": lambda: (build("conv2d", Ask((2, 16, 31, 31), channels=24, stride=2)), None),
    "attention": lambda: (build("attention", Ask((1, 4, 65, 32))), None),
    "lstm": lambda: (build("lstm", Ask((7, 1, 24), channels=32)), None),
}


@pytest.fixture(scope="module")
def application(tmp_path_factory):
    folder = tmp_path_factory.mktemp("application")
    (folder / "main.c").write_text(APPLICATION)
    sources = sorted(map(str, NATIVE.glob("*.c")))
    subprocess.run([COMPILER, "-std=c11", "-O1", f"-I{NATIVE}", "main.c", *sources, "-pthread", "-o", "main"], cwd=folder, check=True)
    return folder / "main"


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_runs_allocate_nothing(name, threads, application, tmp_path):
    """After the first: preparing does (so the count counts), twenty runs do not."""
    model, shapes = MODELS[name]()
    artifact = compile_artifact(model, shapes=shapes)
    archive = zipfile.ZipFile(io.BytesIO(artifact))
    (tmp_path / "weights.bin").touch()  # a model may have none
    for entry in archive.namelist():
        target = "code.bin" if entry.startswith("code/") else entry
        (tmp_path / target).write_bytes(archive.read(entry))
    done = subprocess.run([application, str(threads)], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stdout == "status 0, prepare allocates, runs 0\n"
