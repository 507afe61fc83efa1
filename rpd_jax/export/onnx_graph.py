"""A student as an ONNX graph.

Built from the parameters: jax2onnx (0.17.1), the living converter, excludes the Orbax release that this project uses,
and would translate the convolutions' matrix products one by one, where a runtime wants convolutions.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rpd_jax.errors import UserError
from rpd_jax.student.convolution import HALF_AND_A_LITTLE

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise UserError("ONNX is not installed: pip install 'rpd-jax[export]'.") from error

_OPSET = 18
_STRIDES = {"conv1": 4, "conv2": 2, "conv3": 1}


def write_onnx(
    weights: Mapping[str, np.ndarray],
    frame_shape: tuple[int, int, int] | None,
    state_dim: int | None,
    path: Path,
) -> None:
    """Writes a checked graph: rgb uint8 [batch, H, W, 3] and/or state float32 [batch, D] -> actions [batch, A].

    Args:
        weights: as `rpd_jax.export.weights.policy_weights` makes them.
        frame_shape: (H, W, 3), or None where the student sees no frames.
        state_dim: D, or None where it sees no state.
        path: of the file.
    """
    graph = _Graph(weights)
    inputs, features = [], []
    if frame_shape is not None:
        inputs.append(helper.make_tensor_value_info("rgb", TensorProto.UINT8, ["batch", *frame_shape]))
        features.append(_image_features(graph, "rgb"))
    if state_dim is not None:
        inputs.append(helper.make_tensor_value_info("state", TensorProto.FLOAT, ["batch", state_dim]))
        features.append(_state_features(graph, "state"))
    hidden = features[0] if len(features) == 1 else graph.add("Concat", features, axis=1)
    hidden = graph.add("Relu", [graph.dense(hidden, "actor_hidden")])
    mean = graph.dense(hidden, "actor_output")
    limits = [graph.constant(name, np.float32(value)) for name, value in (("low", -1.0), ("high", 1.0))]
    graph.add("Clip", [mean, *limits], output="actions")
    num_actions = weights["actor_output/bias"].shape[0]
    output = helper.make_tensor_value_info("actions", TensorProto.FLOAT, ["batch", num_actions])
    model = helper.make_model(
        helper.make_graph(graph.nodes, "student", inputs, [output], graph.constants),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=10,  # read by runtimes from 2024 on
        producer_name="rpd_jax",
    )
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


class _Graph:
    """Collects nodes and constants; every node has one output, by whose name it is known."""

    def __init__(self, weights: Mapping[str, np.ndarray]):
        self.weights, self.nodes, self.constants = weights, [], []

    def add(self, operator: str, inputs: list[str], output: str | None = None, **attributes) -> str:
        output = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, name: str) -> str:
        return self.constant(name, self.weights[name])

    def dense(self, hidden: str, layer: str) -> str:
        return self.add("Gemm", [hidden, self.weight(f"{layer}/kernel"), self.weight(f"{layer}/bias")])


def _image_features(graph: _Graph, frames: str) -> str:
    images = graph.add("Cast", [frames], to=TensorProto.FLOAT)
    images = graph.add("Transpose", [images], perm=[0, 3, 1, 2])  # runtimes want channels first
    if "resize" in graph.weights:
        rows = graph.weight("resize")
        columns = graph.constant("resize_columns", graph.weights["resize"].T.copy())
        images = graph.add("MatMul", [graph.add("MatMul", [rows, images]), columns])
        images = graph.add("Add", [images, graph.constant("half", np.float32(HALF_AND_A_LITTLE))])
        images = graph.add("Floor", [images])
    images = graph.add("Div", [images, graph.constant("white", np.float32(255.0))])
    for layer, stride in _STRIDES.items():
        kernel = np.ascontiguousarray(graph.weights[f"{layer}/kernel"].transpose(3, 2, 0, 1))
        inputs = [images, graph.constant(f"{layer}/kernel", kernel), graph.weight(f"{layer}/bias")]
        images = graph.add("Relu", [graph.add("Conv", inputs, strides=[stride, stride])])
    images = graph.add("Transpose", [images], perm=[0, 2, 3, 1])
    flat = graph.add("Flatten", [images], axis=1)
    return graph.add("Relu", [graph.dense(flat, "image_dense")])


def _state_features(graph: _Graph, state: str) -> str:
    if "state_mean" in graph.weights:
        state = _scaled(graph, state)
    if "state_dense/kernel" in graph.weights:
        return graph.add("Relu", [graph.dense(state, "state_dense")])
    for layer in ("trunk1", "trunk2"):
        state = graph.add("Tanh", [graph.dense(state, layer)])
    return state


def _scaled(graph: _Graph, state: str) -> str:
    deviation, limit = graph.weight("state_deviation"), graph.weights["state_range"]
    normalized = graph.add("Div", [graph.add("Sub", [state, graph.weight("state_mean")]), deviation])
    limits = [graph.constant("state_low", -limit), graph.constant("state_high", limit)]
    features = [graph.add("Clip", [normalized, *limits])]
    for index, scale in enumerate(graph.weights["state_scales"]):
        scaled = graph.add("Mul", [state, graph.constant(f"state_scale{index}", scale)])
        features.append(graph.add("Tanh", [graph.add("Div", [scaled, deviation])]))
    return graph.add("Concat", features, axis=1)
