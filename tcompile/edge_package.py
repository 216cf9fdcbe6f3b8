"""``package``: an artifact as a folder that any C project builds: model, runtime source, header, example, CMake file.

    model.tcm -> CMakeLists.txt, README.md
                 include/   tcompile.h, ID_model.h (the signature)
                 src/       the runtime
                 model/     model.c, descriptor.bin, code.bin, weights.bin
                 example/   main.c

Nothing of it needs Python, a zip reader or a parser of JSON. The templates stand in ``tcompile/edge``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import tcompile
from tcompile import runtime
from tcompile.errors import Error, UnsupportedError
from tcompile.runtime.loader import Archive, checked_descriptor
from tcompile.runtime.segments import HOST_PLAN

_TEMPLATES = Path(__file__).with_name("edge")
_RUNTIME = "native"


def package(artifact: str | os.PathLike[str] | bytes, folder: str | os.PathLike[str], name: str | None = None) -> Path:
    """Writes the package of an artifact into a new folder, whole or not at all, and gives the folder.

    ``name``: the C identifier of library, header and functions; made of the model's name by default. Any target will do: the
    package is built for it later. Raises UnsupportedError for a model that Python runs in part, ArtifactError for a
    damaged one, and Error for a folder that exists.
    """
    folder = Path(folder)
    archive = Archive(artifact)
    if HOST_PLAN in archive:
        hint = "compile with host_ops=False to see which operators need it"
        raise UnsupportedError("the model needs Python at run time, so no C program can run it alone", hint=hint)
    if "descriptor.bin" not in archive:
        raise UnsupportedError("the artifact holds no CPU code, which is what a package is made of", hint="compile it for a CPU target")
    if folder.exists():
        raise Error(f"{folder} exists already", hint="name a new folder")
    parts = {
        "descriptor.bin": checked_descriptor(archive),
        "code.bin": archive.find("code/").tobytes(),
        "weights.bin": archive.part("weights.bin"),
    }
    manifest = json.loads(archive.part("manifest.json").tobytes())
    texts = _texts(manifest, name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        _write(temporary, parts, texts)
        temporary.chmod(0o755)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return folder


def identifier(text: str) -> str:
    """A C identifier out of any text, in lower case."""
    plain = re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
    return plain if plain[:1].isalpha() else f"model_{plain}".rstrip("_")


def _texts(manifest: Mapping[str, Any], name: str | None) -> dict[str, str]:
    """What the templates are filled with."""
    if name is not None and (name != identifier(name)):
        raise Error(f"{name!r} is no C identifier in lower case", hint=f"{identifier(name)} is one")
    own = name or identifier(manifest["name"])
    inputs, outputs = manifest["inputs"], manifest["outputs"]
    return {
        "id": own,
        "macro": own.upper(),
        "name": _comment(manifest["name"]),
        "target": manifest["target"],
        "version": tcompile.__version__,
        "memory": _memory(manifest["bytes"]),
        "inputs": _signature(inputs, manifest["symbols"]),
        "outputs": _signature(outputs, {}),
        "positions": _positions(own.upper(), inputs, outputs),
        "input_slots": str(max(len(inputs), 1)),
        "output_slots": str(max(len(outputs), 1)),
    }


def _memory(sizes: Mapping[str, int | None]) -> str:
    known = f"{sizes['code']} bytes of code, {sizes['weights']} of weights (both in the library)"
    if sizes["arena"] is None or sizes["scratch"] is None:
        return f"{known}, and an arena that grows with the inputs"
    return f"{known}, {sizes['arena']} of arena, {sizes['scratch']} of scratch for each thread"


def _signature(tensors: Sequence[Mapping[str, Any]], symbols: Mapping[str, Sequence[Any]]) -> str:
    """One line per tensor, and one per symbol with its range."""
    lines = [f"{tensor['name']}: {tensor['dtype']}[{', '.join(map(str, tensor['shape']))}]" for tensor in tensors]
    used = {word for tensor in tensors for extent in tensor["shape"] for word in re.findall(r"[A-Za-z_]\w*", str(extent))}
    for symbol, (low, high) in symbols.items():
        if symbol in used:
            lines.append(f"  {symbol}: at least {low}" if high is None else f"  {symbol}: {low} to {high}")
    return "\n".join(f" *   {_comment(line)}" for line in lines)


def _positions(macro: str, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> str:
    """Names for the positions of tensors; where two names would be one, the number joins them."""
    lines = []
    for kind, tensors in (("INPUT", inputs), ("OUTPUT", outputs)):
        names = [identifier(tensor["name"]).upper() for tensor in tensors]
        unique = [name if names.count(name) == 1 else f"{name}_{k}" for k, name in enumerate(names)]
        lines += [f"    {macro}_{kind}_{name} = {k}," for k, name in enumerate(unique)]
        lines.append(f"    {macro}_{kind}S = {len(tensors)},")
    return "\n".join(["enum {", *lines, "};"])


def _comment(text: str) -> str:
    """A name of the model as a comment or string of C may hold it."""
    return "".join(c if c.isprintable() and c not in '"\\?' else "_" for c in text).replace("*/", "* /").replace("/*", "/ *")


def _write(folder: Path, parts: Mapping[str, Any], texts: Mapping[str, str]) -> None:
    own = texts["id"]
    places = {
        "CMakeLists.txt": "CMakeLists.txt",
        "README.md": "README.md",
        "model.h": f"include/{own}_model.h",
        "model.c": "model/model.c",
        "main.c": "example/main.c",
    }
    for part in ("include", "src", "model", "example"):
        (folder / part).mkdir()
    for template, place in places.items():
        (folder / place).write_text(Template((_TEMPLATES / template).read_text()).substitute(texts))
    for file in sorted((Path(runtime.__file__).parent / _RUNTIME).glob("*.[ch]")):
        shutil.copyfile(file, folder / ("include" if file.name == "tcompile.h" else "src") / file.name)
    for part, data in parts.items():
        with open(folder / "model" / part, "wb") as stream:
            stream.write(memoryview(data))
