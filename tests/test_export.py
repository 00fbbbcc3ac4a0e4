"""Programs without Python: torch.export keeps the operator, ONNX computes what PyTorch does."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from repflow import FlowOfFlow, RepresentationFlow
from repflow.layers import ClipFlow

BLOCKS = re.findall(r"```python\n(.*?)```", Path(__file__).parents[1].joinpath("docs/export.md").read_text(), re.DOTALL)


def outputs(file, x):
    session = pytest.importorskip("onnxruntime").InferenceSession(file)
    (name,) = [entry.name for entry in session.get_inputs()]
    return session.run(None, {name: x.numpy()})[0]


def test_the_page_s_network_keeps_the_operator_and_runs_as_onnx(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(BLOCKS[0], names)  # noqa: S102 (our own text)
    operators = [str(node.target) for node in names["program"].graph.nodes]
    assert operators.count("repflow.solve.default") == 1
    network, other = names["network"], torch.rand(1, 3, 5, 48, 48) * 2 - 1
    expected = network(other).detach()
    torch.testing.assert_close(names["program"].module()(other), expected)
    pytest.importorskip("onnxscript")
    exec(BLOCKS[1], names)  # noqa: S102
    np.testing.assert_allclose(outputs("network.onnx", other), expected, atol=1e-4)


@pytest.mark.parametrize("kind", [RepresentationFlow, FlowOfFlow])
def test_layers_run_as_onnx(kind, tmp_path):
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    layer, x = kind(6, bottleneck=4, iterations=3).eval(), torch.randn(2, 6, 4, 9, 12)
    expected = layer(x).detach()
    for part in layer.modules():
        if isinstance(part, ClipFlow):
            part.engine = "reference"
    torch.onnx.export(layer, (torch.randn_like(x),), tmp_path / "layer.onnx", dynamo=True)
    np.testing.assert_allclose(outputs(tmp_path / "layer.onnx", x), expected, atol=1e-4)
