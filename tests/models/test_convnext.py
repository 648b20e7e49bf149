import jax
import numpy as np
import pytest
from flax import nnx

from tests.models.originals.convnext import PARAMETERS
from tests.models.reference import images, torchvision_model
from tests.models.zoo import built, table_of
from tlx import create_model
from tlx.models import default_meta, family
from tlx.models.base import Rates
from tlx.models.convnext import PRESETS, Block, ConvNeXt, ConvNeXtPreset
from tlx.models.leaves import initial_values, leaves, values, with_values

TINY = ConvNeXtPreset((1, 1, 2, 1), (4, 8, 12, 16), 0.5, 236)


def tiny(seed=0):
    """A ConvNeXt of a few channels whose blocks weigh as much as their shortcuts."""
    meta = default_meta("convnext_tiny")
    model = ConvNeXt(TINY, num_classes=3, meta=meta, rates=Rates())
    found = leaves(model)
    drawn = initial_values(found, found, seed)
    rng = np.random.default_rng(seed)
    for path, leaf in found.items():
        if path.endswith(("kernel", "layer_scale")):
            drawn[path] = rng.standard_normal(leaf.shape).astype(np.float32) * 0.5
    return with_values(model, drawn)


def test_drop_path_rises_to_the_published_rate_at_the_last_block():
    for name, last in (("convnext_tiny", 0.1), ("convnext_small", 0.4), ("convnext_base", 0.5)):
        model = built(name)
        rates = [b.drop_path for stage in model.stages[1:-1] for b in getattr(model, stage).blocks]
        np.testing.assert_allclose(rates, np.linspace(0, last, sum(PRESETS[name].depths)))


def test_training_drops_whole_branches_of_examples():
    block = with_values_of(Block(4, rate=0.25))
    x = images(400, 3, 3)[..., :1] * np.ones(4, np.float32)
    kept = block(x)
    dropped = np.asarray(block(x, jax.random.key(1)))
    scaled = x + (kept - x) / 0.75
    is_shortcut = (dropped == x).all((1, 2, 3))
    is_branch = np.isclose(dropped, scaled, rtol=1e-5, atol=1e-6).all((1, 2, 3))
    assert (is_shortcut ^ is_branch).all()
    assert abs(is_shortcut.mean() - 0.25) < 0.1


def with_values_of(module):
    rng = np.random.default_rng(0)
    state = nnx.state(module)
    for _, variable in nnx.to_flat_state(state):
        shape = variable.get_value().shape
        variable.set_value(rng.standard_normal(shape).astype(np.float32))
    nnx.update(module, state)
    return module


def test_training_is_seeded_by_its_key():
    graphdef, state = nnx.split(tiny())
    forward = jax.jit(lambda x, key: nnx.merge(graphdef, state)(x, key))
    x = images(4, 64, 64)
    one, two, other = (forward(x, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one, other)
    without = create_rates(0.0)
    assert {b.drop_path for s in without.stages[1:-1] for b in getattr(without, s).blocks} == {0.0}


def create_rates(rate):
    meta = default_meta("convnext_tiny")
    make = family("convnext_tiny").create
    return make("convnext_tiny", num_classes=3, meta=meta, rates=Rates(drop_path=rate))


def test_pooling_comes_before_the_last_norm():
    model = tiny()
    x = images(2, 64, 96)
    found = np.asarray(model.run(x, 0, 5)).mean((1, 2))
    normed = (found - found.mean(-1, keepdims=True)) / np.sqrt(found.var(-1) + 1e-6)[:, None]
    np.testing.assert_allclose(model.features(x), normed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PARAMETERS)
def test_each_projects_names_are_told_apart_with_and_without_a_head(name):
    zeros = {p: np.broadcast_to(np.float32(0), x.shape) for p, x in leaves(built(name)).items()}
    body = {path: array for path, array in zeros.items() if not path.startswith("head.")}
    tables = family(name).key_tables(name)
    for arrays in (zeros, body):
        for table in tables:
            names = table.to_source(arrays)
            assert table.coverage(names) == len(names)
            assert all(t.coverage(names) < len(names) for t in tables if t is not table)


@pytest.mark.parity
def test_initial_values_are_distributed_as_torchvisions():
    expected = torchvision_model("convnext_tiny").state_dict()
    model = create_model("convnext_tiny", seed=5)
    table = table_of("convnext_tiny", "torchvision")
    ours = table.to_source({path: np.asarray(v) for path, v in values(model).items()})
    for key, value in expected.items():
        theirs = value.numpy()
        if theirs.std() == 0:
            np.testing.assert_array_equal(ours[key], theirs)
        elif theirs.size > 5000:
            assert ours[key].std() == pytest.approx(theirs.std(), rel=0.06), key
            assert np.abs(ours[key]).max() > 3 * ours[key].std(), key
