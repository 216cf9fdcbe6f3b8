"""One generated Problem per core op: random shapes and dtypes, compiled code against the interpreter."""

from tests.problems import contractions, control, elementwise, folds, forests, indexing, layouts, movement, structure
from tests.problems.problem import PROBLEMS, Batch, Case, Problem

SUBJECTS = (structure, elementwise, movement, indexing, contractions, folds, control, layouts, forests)

__all__ = ["PROBLEMS", "SUBJECTS", "Batch", "Case", "Problem"]
