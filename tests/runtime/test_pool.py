"""The thread pool by itself: random jobs from C, also under ThreadSanitizer where the compiler has it."""

import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "runtime" / "native"
COMPILER = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) or shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None or sys.platform == "win32", reason="needs a C compiler and POSIX threads")

STRESS = r"""
#include "pool.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST = 4096, SHORT = 40, STRIDE = 64, THREADS = 1024, FAILURE = 1000 };
static unsigned char done[MOST], scratch[STRIDE * THREADS];

int32_t tc_default_threads(void) { return 2; }

/* Fails in the grain of args[0], and in that of args[1], with a status that tells where the range began. */
static int32_t kernel(const uint64_t *args, int64_t begin, int64_t end, uint8_t *mine) {
    for (int64_t i = begin; i < end; i++) done[i]++;
    mine[0]++; /* a race where two threads have the same scratch */
    for (int k = 0; k < 2; k++)
        if ((int64_t)args[k] >= begin && (int64_t)args[k] < end) return (int32_t)(FAILURE + begin);
    return 0;
}

static int one_job(tc_pool *pool) {
    int64_t extent = 1 + rand() % (rand() % 7 ? SHORT : MOST), grain = 1 + rand() % 3;
    uint64_t fails[2] = {rand() % 4 ? MOST : (uint64_t)(rand() % extent), rand() % 4 ? MOST : (uint64_t)(rand() % extent)};
    int64_t first = (int64_t)(fails[0] < fails[1] ? fails[0] : fails[1]);
    memset(done, 0, sizeof done);
    tc_job job = {kernel, fails, extent, grain, scratch, STRIDE, NULL, 0};
    int32_t status = tc_pool_run(pool, &job);
    for (int64_t i = 0; i < MOST; i++)
        if (done[i] != (i < extent)) return printf("index %d of %d: %d times\n", (int)i, (int)extent, done[i]);
    if (first == MOST ? status == 0 : status >= FAILURE && status <= FAILURE + first) return 0;
    return printf("%d failed, status %d\n", (int)first, status);
}

int main(int count, char **args) {
    tc_pool *pool = tc_pool_new(atoi(args[1]));
    srand(count);
    for (int i = atoi(args[2]); i > 0; i--) {
        if (one_job(pool)) return 1;
        if (rand() % 500 == 0) nanosleep(&(struct timespec){0, 300000}, NULL); /* workers fall asleep */
    }
    tc_pool_free(pool);
    return 0;
}
"""


def _build(folder, *flags):
    source, program = folder / "stress.c", folder / "stress"
    source.write_text(STRESS)
    parts = [source, NATIVE / "pool.c", NATIVE / "platform.c"]
    command = [COMPILER, "-O2", "-g", "-std=gnu11", f"-I{NATIVE}", *flags, *parts, "-o", program, "-pthread"]
    return program, subprocess.run(command, capture_output=True, text=True)


def _run(program, threads, jobs):
    return subprocess.run([program, str(threads), str(jobs)], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    program, built = _build(tmp_path_factory.mktemp("plain"), "-Wall", "-Wextra", "-Werror")
    assert built.returncode == 0, built.stderr
    return program


@pytest.mark.parametrize("threads", [1, 2, 3, 5, 64])
def test_every_index_is_done_once_and_the_first_failure_is_told(plain, threads):
    done = _run(plain, threads, 30_000)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="where ThreadSanitizer runs")
def test_no_race_is_seen(tmp_path):
    program, built = _build(tmp_path, "-fsanitize=thread")
    if built.returncode:
        pytest.skip("the compiler has no ThreadSanitizer")
    done = _run(program, 3, 5_000)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer does not know this kernel's address space")
    assert done.returncode == 0, done.stdout + done.stderr
