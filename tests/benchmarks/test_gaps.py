"""Kernels beside a peer's operations: joined by the nodes that both compute."""

from onnx import TensorProto, helper

from tcompile.benchmarks.gaps import join
from tcompile.benchmarks.onnx_nodes import name_all, read_nodes
from tcompile.benchmarks.peer_times import PeerOp, onnxruntime_events
from tcompile.runtime import CallProfile


def _model(*nodes):
    return helper.make_model(
        helper.make_graph(
            [helper.make_node(op, inputs, outputs, name) for op, inputs, outputs, name in nodes],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        )
    )


CHAIN = _model(
    ("Conv", ["x", "w"], ["a"], "conv1"),
    ("Relu", ["a"], ["b"], ""),
    ("Add", ["b", "x"], ["c"], "add"),
    ("Conv", ["c", "v"], ["y"], "conv2"),
)


def call(kernel, seconds, *nodes):
    return CallProfile(kernel, nodes, seconds, seconds, 1, None)


def peer(kind, seconds, anchors, covered=()):
    return PeerOp(f"{kind} of theirs", kind, seconds, seconds, list(anchors), list(covered))


def test_names_of_nodes_and_of_tensors_are_labels():
    nodes = read_nodes(CHAIN)
    assert nodes.labels(["conv1", "b", "nobody", "a"]) == ["conv1", "Relu #1"]


def test_what_leads_to_a_result_stops_at_other_results():
    nodes = read_nodes(CHAIN)
    assert set(nodes.covered(["add"], {"add", "conv2"})) == {"add", "Relu #1", "conv1"}
    assert nodes.heavy(nodes.covered(["conv2"], {"add", "conv2"})) == ["conv2"]


def test_nodes_without_names_get_their_labels():
    model = _model(("Relu", ["x"], ["y"], ""))
    assert name_all(model) and model.graph.node[0].name == "Relu #0" and not name_all(model)


def test_an_operation_goes_to_the_kernel_that_names_its_node_first():
    """A kernel may name a later one's node because it writes that one's border."""
    calls = [call("k1", 3.0, "conv1", "Relu #1", "conv2"), call("k2", 1.0, "conv2")]
    first, second = join(calls, [peer("Conv", 1.0, ["Relu #1"], ["conv1"]), peer("Conv", 2.0, ["conv2"], ["conv2"])])
    assert (first.name, first.ours, first.theirs, first.gap) == ("k1", 3.0, 1.0, 2.0)
    assert (second.name, second.ours, second.theirs, second.nodes) == ("k2", 1.0, 2.0, ["conv2"])


def test_an_operation_of_several_kernels_joins_them():
    calls = [call("k1", 1.0, "conv1"), call("k2", 1.0, "add"), call("k3", 1.0, "conv2")]
    groups = join(calls, [peer("Fused", 1.5, ["conv2"], ["conv1", "conv2"]), peer("Reorder", 0.5, [])])
    assert [(len(group.calls), group.theirs) for group in groups] == [(1, 0), (2, 1.5), (0, 0.5)]
    assert groups[2].name == "Reorder"


def test_operations_that_run_several_times_a_run_are_summed():
    """Events of the first run, which warms up, are left out; so are those of control flow, which hold others."""

    def event(name, kind, microseconds):
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": {"op_name": kind}}

    events = [event("a", "Add", d) for d in (9, 9, 1, 2, 3, 4)] + [event("l", "Loop", 50)]
    events += [event("b", "Mul", d) for d in (7, 5, 6)] + [{"cat": "Session", "name": "model_run", "dur": 1}]
    times, kinds = onnxruntime_events(events, 2)
    assert {name: [round(t * 1e6) for t in values] for name, values in times.items()} == {"a": [3, 7], "b": [5, 6]}
    assert kinds == {"a": "Add", "b": "Mul"}
