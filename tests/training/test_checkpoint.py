import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlx.errors import InputError
from tlx.training.checkpoint import Checkpoints, Position, load_base, save_base
from tlx.training.mesh import make_mesh, replicated
from tlx.training.state import TrainState
from tlx.weights.meta import WeightsMeta


def state_at(step):
    moments = (jnp.full((2, 3), step + 0.5), jnp.int32(step))
    return TrainState(
        {"head.kernel": jnp.full((2, 3), float(step))}, {"bn.mean": jnp.arange(3.0) + step}, moments
    )


def shapes():
    sharding = replicated(make_mesh())
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state_at(0)
    )


@pytest.fixture
def checkpoints(tmp_path):
    found = Checkpoints(tmp_path, keep_last=2)
    yield found
    found.close()


def same(one, two):
    return all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(two)))


def test_what_was_saved_comes_back_whole(checkpoints):
    position = Position(
        step=5, best_step=4, best_value=0.75, fingerprint="data", base="hash", seconds=1.5
    )
    checkpoints.save(state_at(5), position)
    checkpoints.wait()
    state, found, problems = checkpoints.restore(lambda _: shapes())
    assert same(state, state_at(5)) and found == position and problems == []
    assert jax.tree.structure(state) == jax.tree.structure(state_at(5))


def test_no_checkpoint_is_none(checkpoints):
    assert checkpoints.restore(lambda _: shapes()) is None


def test_the_best_and_the_last_two_are_kept_also_over_a_restart(tmp_path):
    for steps in ((1, 2, 3), (4, 5)):
        found = Checkpoints(tmp_path, keep_last=2)
        found.restore(lambda _: shapes())
        for step in steps:
            found.save(state_at(step), Position(step=step, best_step=1 if step < 5 else 5))
            found.wait()
        if steps[0] == 1:
            assert found.steps() == [1, 2, 3]
        found.close()
    assert found.steps() == [4, 5]


def test_donating_the_state_after_saving_does_not_reach_the_checkpoint(checkpoints):
    state = jax.tree.map(lambda x: jnp.zeros((1000, 1000)) + 1, state_at(0))
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x - 7, s), donate_argnums=0)
    checkpoints.save(state, Position(step=1))
    state = overwrite(state)
    jax.block_until_ready(state)
    checkpoints.wait()
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    found, _, _ = checkpoints.restore(lambda _: wanted)
    assert all((np.asarray(leaf) == 1).all() for leaf in jax.tree.leaves(found))


def flip_a_bit(folder):
    """Flips one bit in the largest array file."""
    path = max(
        (p for p in (folder / "values").rglob("*") if p.is_file() and p.parent.name == "d"),
        key=lambda p: p.stat().st_size,
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path):
    found = Checkpoints(tmp_path, keep_last=3)
    rng = np.random.default_rng(0)
    for step in (1, 2):
        state = jax.tree.map(
            lambda x: jnp.asarray(rng.standard_normal((64, 64)), jnp.float32), state_at(0)
        )
        found.save(state, Position(step=step))
        found.wait()
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    flip_a_bit(found.folder / "2")
    _, position, problems = found.restore(lambda _: wanted)
    assert position.step == 1
    assert (
        len(problems) == 1 and str(found.folder / "2") in problems[0] and "damaged" in problems[0]
    )
    found.set_aside_after(1)
    assert found.steps() == [1]
    shutil.rmtree(found.folder / "1" / "values")
    with pytest.raises(InputError, match="no intact checkpoint is left"):
        found.restore(lambda _: wanted)
    found.close()


def test_a_damaged_best_checkpoint_falls_back_to_the_last(tmp_path):
    with Checkpoints(tmp_path, keep_last=1) as found:
        for step in (1, 2):
            found.save(state_at(step), Position(step=step, best_step=1, best_value=0.5))
        found.wait()
    sharding = replicated(make_mesh())
    values = {**state_at(0).trainable, **state_at(0).statistics}
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), values
    )
    with Checkpoints(tmp_path, read_only=True) as reader:
        best, position, problems = reader.restore_values(
            lambda _: TrainState(shapes, {}, ()), "best"
        )
        assert position.step == 1 and problems == [] and (best["head.kernel"] == 1).all()
        last, position, _ = reader.restore_values(lambda _: TrainState(shapes, {}, ()), "last")
        assert position.step == 2 and (last["head.kernel"] == 2).all()
        shutil.rmtree(reader.folder / "1" / "values")
        best, position, problems = reader.restore_values(
            lambda _: TrainState(shapes, {}, ()), "best"
        )
        assert position.step == 2 and (best["head.kernel"] == 2).all()
        assert "the best checkpoint" in problems[0]


def test_a_damaged_step_that_was_asked_for_is_named_with_those_that_are_there(tmp_path):
    with Checkpoints(tmp_path, keep_last=3) as found:
        for step in (1, 2, 3):
            found.save(state_at(step), Position(step=step))
        found.wait()
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "values")
    with Checkpoints(tmp_path, read_only=True) as reader:
        with pytest.raises(InputError) as caught:
            reader.restore_values(lambda _: shapes(), 2)
        said = str(caught.value)
        assert f"checkpoint {tmp_path}/checkpoints/2 is damaged" in said
        assert "there are steps: 1, 3" in said and "no intact checkpoint" not in said
        values, position, _ = reader.restore_values(lambda _: shapes(), 3)
        assert position.step == 3 and (values["head.kernel"] == 3).all()


def test_a_reader_leaves_a_running_save_alone(tmp_path):
    with Checkpoints(tmp_path) as found:
        found.save(state_at(1), Position(step=1))
        found.wait()
    unfinished = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    unfinished.mkdir()
    with Checkpoints(tmp_path, read_only=True) as reader:
        assert reader.steps() == [1]
    assert unfinished.is_dir()


def test_base_weights_are_checked_by_hash(tmp_path):
    frozen = {"a.kernel": jnp.arange(6.0).reshape(2, 3), "a.bias": jnp.ones(3)}
    digest = save_base(tmp_path, frozen, WeightsMeta("resnet18"), {"weights": "none"})
    sharding = replicated(make_mesh())
    values = load_base(tmp_path, tuple(frozen), digest, sharding)
    assert same(values, frozen)
    facts = json.loads((tmp_path / "base" / "base.json").read_text())
    assert facts["frozen_sha256"] == digest and facts["weights"] == "none"
    with pytest.raises(InputError, match=f"expected sha256 0000000000000000, found {digest[:16]}"):
        load_base(tmp_path, tuple(frozen), "0" * 64, sharding)
