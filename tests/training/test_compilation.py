import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from tlx.training import compilation


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="options for the CPU")
def test_steps_on_the_cpu_are_compiled_without_fusions_that_slow_convolutions():
    def total(x):
        return jnp.sum(x * 2)

    x = jnp.ones((512, 512))
    if "__ynn" not in jax.jit(total).lower(x).compile().as_text():
        pytest.skip("this jaxlib has no such fusions unless told to")
    assert "__ynn" not in compilation.jit(total).lower(x).compile().as_text()


def test_an_option_that_jaxlib_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(compilation, "_CPU", {"xla_cpu_no_such_option": ""})
    compilation._compiler_options.cache_clear()
    try:
        assert compilation.jit(lambda x: x + 1)(1) == 2
    finally:
        compilation._compiler_options.cache_clear()


SCRIPT = """
import jax, jax.numpy as jnp
from tlx.training.compilation import keep_compiled

print(keep_compiled() is not None)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
jax.jit(lambda x: jnp.sum(jnp.sort(x * 2.0) @ x))(jnp.ones((64, 64))).block_until_ready()
print("/jax/compilation_cache/cache_hits" in hits)
"""


def answers(folder, **more):
    others = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment = others | {"TLX_CACHE": str(folder)} | more
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return done.stdout.split()


def test_what_was_compiled_is_found_by_the_next_process(tmp_path):
    assert answers(tmp_path) == ["True", "False"]
    assert answers(tmp_path) == ["True", "True"]
    (folder,) = (tmp_path / "compiled").iterdir()
    assert f"jax-{jax.__version__}-" in folder.name
    assert folder.stat().st_mode & 0o777 == 0o700


def test_compiled_code_that_others_could_have_written_is_not_run(tmp_path):
    answers(tmp_path)
    (folder,) = (tmp_path / "compiled").iterdir()
    folder.chmod(0o777)
    assert answers(tmp_path) == ["False", "False"]
    assert answers(tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))[0] == "False"
