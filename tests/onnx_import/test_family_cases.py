"""ONNX's own cases of the operator families that become more than a few core ops."""

import pytest

from tests.onnx_import.node_cases import node_cases, run_case

OPERATORS = {
    "Conv", "ConvTranspose", "ConvInteger", "DeformConv", "Col2Im", "CausalConvWithState",
    "AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "MaxUnpool",
    "BatchNormalization", "InstanceNormalization", "GroupNormalization", "LRN",
    "Resize", "Upsample", "GridSample", "AffineGrid", "RoiAlign",
    "If", "Loop", "Scan", "SplitToSequence", "RNN", "GRU", "LSTM",
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul",
    "TopK", "Unique", "NonMaxSuppression", "Einsum", "DFT", "STFT", "MelWeightMatrix", "Det",
    "HannWindow", "HammingWindow", "BlackmanWindow", "Attention", "RotaryEmbedding", "LinearAttention",
    "SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss", "TfIdfVectorizer", "Adam", "Adagrad", "Momentum",
    "TreeEnsemble", "ArrayFeatureExtractor", "Binarizer",
}  # fmt: skip

# case -> why it cannot pass
EXCEPTIONS = {
    "test_dft_inverse": "expects the rounding noise of the reference's own f32 sums, where the exact result is 0",
    "test_dft_inverse_opset19": "expects the rounding noise of the reference's own f32 sums, where the exact result is 0",
    "test_if_opt": "an optional that one branch leaves empty has no type",
    "test_split_to_sequence_1": "the number of pieces depends on the data",
    "test_loop13_seq": "a sequence is an input of the model",
    "test_loop16_seq_none": "an optional is an input of the model",
    "test_affine_grid_3d_align_corners_expanded": "the branches of an If on run-time data differ in rank",
}


def _names() -> list[str]:
    cases = node_cases()
    ours = (name for name, case in cases.items() if len(case.model.graph.node) == 1 and case.model.graph.node[0].op_type in OPERATORS)
    return sorted(name for name in ours if name not in EXCEPTIONS)


@pytest.mark.parametrize("name", _names())
def test_case(name):
    run_case(node_cases()[name])


def test_every_operator_has_a_case():
    seen = {node.op_type for case in node_cases().values() for node in case.model.graph.node}
    assert seen >= OPERATORS
