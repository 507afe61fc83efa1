"""Which kernels take a program's time: how often they run, where they are from, and no time counted twice."""

import jax
import jax.numpy as jnp
import pytest

from rpd_jax.kernels import Kernel, _own_times, kernel_table, measure_kernels

STEPS, SIZE = 5, 256


@pytest.fixture(scope="module")
def kernels():
    def program(x, w):
        x, _ = jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=STEPS)
        return jnp.linalg.qr(x)[1].sum()

    x = jnp.ones((SIZE, SIZE))
    compiled = jax.jit(program).lower(x, x).compile()
    jax.block_until_ready(compiled(x, x))
    return measure_kernels(compiled, (x, x), repeats=2)


def test_what_a_loop_repeats_counts_as_often_as_it_runs(kernels):
    (product,) = (kernel for kernel in kernels if kernel.source.endswith("while/body/closed_call/dot_general"))
    assert product.calls == STEPS and product.ms > 0


def test_those_that_take_most_come_first_and_a_loop_has_no_time_of_its_steps(kernels):
    times = [kernel.ms for kernel in kernels]
    assert times == sorted(times, reverse=True)
    (loop,) = (kernel for kernel in kernels if kernel.name.startswith("while") and kernel.source.endswith("/while"))
    steps = sum(kernel.ms for kernel in kernels if "while/body" in kernel.source)
    assert loop.ms < steps


def test_time_inside_an_event_is_not_that_events_own():
    inside = [("loop", 0, 100), ("a", 10, 20), ("b", 30, 40), ("inner", 35, 5), ("b", 80, 20), ("after", 100, 7)]
    assert sorted(_own_times(inside)) == [("a", 20), ("after", 7), ("b", 20), ("b", 35), ("inner", 5), ("loop", 20)]


def test_the_table_has_the_others_in_one_row():
    kernels = [Kernel(f"kernel_{i}", f"jit(f)/step_{i}", calls=2.0, ms=float(10 - i)) for i in range(5)]
    table = kernel_table("program", kernels, most=2)
    names, calls, ms, shares, sources = (list(column.cells) for column in table.columns)
    assert "40.00 ms" in table.title
    assert names == ["kernel_0", "kernel_1", "3 others"] and sources == ["jit(f)/step_0", "jit(f)/step_1", ""]
    assert calls == ["2", "2", "6"] and ms == ["10.000", "9.000", "21.000"] and shares == ["25%", "22%", "52%"]
    assert len(kernel_table("program", kernels, most=5).rows) == 5
