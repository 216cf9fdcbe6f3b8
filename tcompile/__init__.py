"""tcompile: compiles trained ONNX models into native artifacts, and runs them."""

from pathlib import Path

_here = Path(__file__).resolve().parent
if not (_here / "ir").is_dir():  # a checkout or editable install: the other folders stand beside this one
    __path__.append(str(_here.parent))
