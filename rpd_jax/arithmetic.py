"""What a compiled program has to do, counted from its trace: operations, the bytes that its products move, and buffers.

XLA's own count takes the body of a loop once, and an update is a loop over minibatches; here loops count as often as
they run. A program is counted for the platform that it is meant for, on whatever machine.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_SUMS = ("reduce_sum", "reduce_max", "reduce_min", "cumsum", "argmax", "argmin")
# One kernel on CUDA, octo_teacher/model/fused_attention.py: of it only arguments and result are read and written.
_FUSED_ATTENTION = "fused_attention"
_MOVES = ("gather", "scatter", "scatter-add", "dynamic_slice", "sort")


@dataclasses.dataclass
class Work:
    """What one call of a program does.

    Attributes:
        products: floating point operations of matrix products and convolutions (a multiply and an add are two), by the
            type of what they multiply.
        others: operations of all else, one for each number that is computed.
        bytes: read and written by products, sums, gathers and scatters, each operand once, and by the call itself.
            What is computed number by number between them is taken as fused with them, so this is a lower bound.
        largest: of the arrays that it makes, bytes.
    """

    products: dict[str, float] = dataclasses.field(default_factory=dict)
    others: float = 0.0
    bytes: float = 0.0
    largest: int = 0

    @property
    def flops(self) -> float:
        """Of all products together."""
        return sum(self.products.values())

    def add(self, other: "Work", times: float = 1.0) -> None:
        """Counts `other` in, so many times."""
        for name, flops in other.products.items():
            self.products[name] = self.products.get(name, 0.0) + times * flops
        self.others += times * other.others
        self.bytes += times * other.bytes
        self.largest = max(self.largest, other.largest)


def count(function: Callable, *arguments: Any, platform: str = "cuda") -> Work:
    """Counts one call of `function`, which is traced and not run.

    Args:
        function: of arrays, compiled or not.
        arguments: arrays, or their shapes (jax.ShapeDtypeStruct).
        platform: whose branch is taken where a program has one for each.
    """
    return count_traced(jax.make_jaxpr(function)(*arguments), platform)


def count_traced(closed: Any, platform: str = "cuda") -> Work:
    """Counts one call of a trace, a ClosedJaxpr; see `count`."""
    work = _of_jaxpr(closed.jaxpr, "cuda" if platform == "gpu" else platform)
    work.bytes += sum(map(nbytes, closed.in_avals)) + sum(map(nbytes, closed.out_avals))
    return work


def matmul_rate(dtype: Any = jnp.float32, repeats: int = 5) -> float:
    """Floating point operations per second of one large matrix product on this machine's first device."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    matrix = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    product = jax.jit(jnp.matmul)
    return 2 * size**3 / min(clock for clock, _ in timings(lambda: product(matrix, matrix), repeats))


def timings(call: Callable[[], Any], repeats: int) -> list[tuple[float, float]]:
    """Seconds on the clock, and of the processor, of each of `repeats` calls after one that compiles."""
    jax.block_until_ready(call())
    found = []
    for _ in range(repeats):
        clock, processor = time.perf_counter(), time.process_time()
        jax.block_until_ready(call())
        found.append((time.perf_counter() - clock, time.process_time() - processor))
    return found


def _of_jaxpr(jaxpr: Any, platform: str) -> Work:
    work, chosen = Work(), {}
    for equation in jaxpr.eqns:
        if equation.primitive.name == "platform_index":
            chosen[equation.outvars[0]] = _branch(equation.params["platforms"], platform)
        work.add(_of_equation(equation, platform, chosen))
    return work


def _branch(platforms: tuple, platform: str) -> int:
    """The place of the branch that a program has for `platform`; the last one is for those that are not named."""
    for index, names in enumerate(platforms):
        if names is None or platform in names:
            return index
    return len(platforms) - 1


def _of_equation(equation: Any, platform: str, chosen: dict) -> Work:
    name, params = equation.primitive.name, equation.params
    work = Work()
    if name == "scan":
        work.add(_of_jaxpr(params["jaxpr"].jaxpr, platform), params["length"])
    elif name == "cond":
        branches = params["branches"]
        index = chosen.get(equation.invars[0])
        counted = [_of_jaxpr(branch.jaxpr, platform) for branch in (branches if index is None else (branches[index],))]
        work.add(max(counted, key=lambda branch: (branch.flops, branch.others)))
    elif params.get("name") == _FUSED_ATTENTION and platform == "cuda":
        _count_fused_attention(work, equation)
    elif inner := [jaxpr for value in params.values() if (jaxpr := _inner(value)) is not None]:
        for jaxpr in inner:
            work.add(_of_jaxpr(jaxpr, platform))
    else:
        _count_primitive(work, equation)
    return work


def _count_fused_attention(work: Work, equation: Any) -> None:
    query, key = (variable.aval for variable in equation.invars[:2])
    (output,) = (variable.aval for variable in equation.outvars)
    scores = query.shape[0] * query.shape[2] * query.shape[1] * key.shape[1]
    work.products = {str(query.dtype): 2 * 2.0 * scores * query.shape[3]}
    work.others = float(scores)
    work.bytes = float(sum(nbytes(variable.aval) for variable in equation.invars) + nbytes(output))
    work.largest = nbytes(output)


def _inner(value: Any) -> Any:
    """The program in a parameter of an equation, or None."""
    if hasattr(value, "jaxpr"):
        return value.jaxpr
    return value if hasattr(value, "eqns") else None


def _count_primitive(work: Work, equation: Any) -> None:
    name = equation.primitive.name
    outputs = [variable.aval for variable in equation.outvars]
    moved = sum(nbytes(variable.aval) for variable in equation.invars) + sum(map(nbytes, outputs))
    work.largest = max(map(nbytes, outputs), default=0)
    if name in ("dot_general", "conv_general_dilated"):
        left, right = (variable.aval for variable in equation.invars[:2])
        terms = _terms(name, equation.params, left, right)
        work.products = {str(jnp.promote_types(left.dtype, right.dtype)): 2.0 * terms * _size(outputs[0])}
        work.bytes = moved
    elif name in _SUMS:
        work.others, work.bytes = float(_size(equation.invars[0].aval)), moved
    elif name == "dynamic_update_slice":  # in place, where nobody reads what was there
        work.bytes = 2.0 * nbytes(equation.invars[1].aval)
    elif name in _MOVES:
        work.bytes = 2.0 * sum(map(nbytes, outputs)) if name in ("gather", "dynamic_slice") else moved
    else:
        work.others = float(sum(map(_size, outputs)))


def _terms(name: str, params: dict, left: Any, right: Any) -> int:
    """Products that are summed for each number of the result."""
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return math.prod(left.shape[axis] for axis in contracted)
    out_feature = params["dimension_numbers"].rhs_spec[0]
    return _size(right) // right.shape[out_feature]


def _size(aval: Any) -> int:
    return math.prod(getattr(aval, "shape", ()))


def nbytes(aval: Any) -> int:
    """Bytes of an array, or of what has its shape and type."""
    dtype = getattr(aval, "dtype", None)
    return _size(aval) * getattr(dtype, "itemsize", 0)
