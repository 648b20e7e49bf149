import jax
import jax.numpy as jnp
import pytest

from tlx.training import compilation


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="options for the CPU")
def test_steps_on_the_cpu_are_compiled_without_fusions_that_slow_convolutions():
    def total(x):
        return jnp.sum(x * 2)

    x = jnp.ones((512, 512))
    assert "__ynn" in jax.jit(total).lower(x).compile().as_text()
    assert "__ynn" not in compilation.jit(total).lower(x).compile().as_text()


def test_an_option_that_jaxlib_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(compilation, "_CPU", {"xla_cpu_no_such_option": ""})
    compilation._compiler_options.cache_clear()
    try:
        assert compilation.jit(lambda x: x + 1)(1) == 2
    finally:
        compilation._compiler_options.cache_clear()
