"""Random graphs: compiled code, the interpreter and ONNX Runtime agree. ``python -m tests.fuzz --examples N`` runs longer."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.graphs import check, draw_graph


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(st.data())
def test_random_graphs(data):
    check(draw_graph(data), threads=data.draw(st.sampled_from((1, 3))))
