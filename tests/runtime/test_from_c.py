"""The C interface: an application without Python opens a model and runs it; the header and its mirror in Python agree."""

import ctypes
import io
import shutil
import subprocess
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tcompile.runtime import abi
from tests.runtime import native_models as models

NATIVE = Path(__file__).parents[2] / "runtime" / "native"
COMPILER = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) or shutil.which("cc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler")

APPLICATION = r"""
#include "tcompile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    char *bytes = aligned_alloc(64, 1 << 16);
    *size = fread(bytes, 1, 1 << 16, file);
    fclose(file);
    return bytes;
}

int main(void) {
    char error[512];
    size_t descriptor_size, code_size, weights_size;
    void *descriptor = read_file("descriptor.bin", &descriptor_size), *code = read_file("code.bin", &code_size);
    void *weights = read_file("weights.bin", &weights_size);
    tc_module *module;
    if (tc_open(descriptor, descriptor_size, code, code_size, weights, weights_size, &module, error, sizeof error)) {
        puts(error);
        return 1;
    }
    free(descriptor);
    free(code);
    const tc_module_info *info = tc_module_describe(module);
    printf("%s: %s[%s, %s]\n", info->name, info->inputs[0].name, info->inputs[0].extents[0].text, info->inputs[0].extents[1].text);

    tc_pool *pool = tc_pool_new(2);
    tc_session *session = tc_session_new(module, pool);
    tc_close(module);
    tc_pool_free(pool);

    float x[6] = {0, 1, 2, 3, 4, 5}, y[6] = {1, 1, 1, 1, 1, 1}, sum[6];
    const void *inputs[2] = {x, y};
    void *outputs[1] = {sum};
    int64_t extents[2] = {2, 3};
    tc_shape shapes[2] = {{extents, 2, 1}, {extents, 2, 1}};
    printf("%d", tc_session_run(session, inputs, outputs));
    printf(" %s\n", tc_session_error(session));
    printf("%d", tc_session_prepare(session, shapes));
    printf(" [%d, %d]\n", (int)tc_session_output_shapes(session)[0], (int)tc_session_output_shapes(session)[1]);
    printf("%d", tc_session_run(session, inputs, outputs));
    for (int i = 0; i < 6; i++) printf(" %g", sum[i]);
    extents[1] = 4;
    printf("\n%d", tc_session_prepare(session, shapes));
    printf(" %s\n", tc_session_error(session));
    tc_session_free(session);
    free(weights);
    return 0;
}
"""


def _compile(folder, text, *options, language="c"):
    (folder / f"main.{language}").write_text(text)
    command = [COMPILER, "-Wall", "-Wextra", "-Wpedantic", "-Werror", *options, f"-I{NATIVE}", f"main.{language}", "-o", "main"]
    subprocess.run(command, cwd=folder, check=True)
    return subprocess.run(["./main"], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_an_application_in_c_runs_a_model(tmp_path):
    """The whole runtime compiles without warnings beside the application; freeing in any order is fine."""
    archive = zipfile.ZipFile(io.BytesIO(models.add_artifact()))
    for entry, name in (("descriptor.bin", "descriptor.bin"), ("code/test.bin", "code.bin"), ("weights.bin", "weights.bin")):
        (tmp_path / name).write_bytes(archive.read(entry))
    output = _compile(tmp_path, APPLICATION, "-std=c11", *sorted(map(str, NATIVE.glob("*.c"))), "-pthread")
    assert output.splitlines() == [
        "adder: x[n, 3]",
        "11 a run before the input shapes were prepared",
        "0 [2, 3]",
        "0 11 22 33 14 25 36",
        "8 input 'x' has extent 4 on axis 1, expected 3",
    ]


def test_the_mirror_in_python_has_the_same_sizes(tmp_path):
    """A field added on one side only would move all others."""
    names = {
        "tc_extent": abi.Extent, "tc_symbol": abi.Symbol, "tc_tensor": abi.Tensor, "tc_site": abi.Site, "tc_weight": abi.Weight,
        "tc_note": abi.Note, "tc_module_info": abi.ModuleInfo, "tc_shape": abi.Shape, "tc_memory": abi.Memory, "tc_hooks": type(abi.hooks),
    }  # fmt: skip
    prints = "\n".join(f'printf("%d\\n", (int)sizeof({name}));' for name in names)
    output = _compile(tmp_path, f'#include "tcompile.h"\n#include <stdio.h>\nint main(void) {{\n{prints}\nreturn 0;\n}}\n', "-std=c11")
    assert dict(zip(names, map(int, output.split()), strict=True)) == {name: ctypes.sizeof(mirror) for name, mirror in names.items()}


def test_every_source_is_built():
    """A file that pyproject.toml does not list would be missing from the library."""
    text = (NATIVE.parents[1] / "pyproject.toml").read_text()
    for path in (*NATIVE.glob("*.c"), *NATIVE.glob("*.h")):
        assert f"runtime/native/{path.name}" in text
