import numpy as np
import pytest
from flax import nnx

from tests.models.reference import images
from tlx import create_model
from tlx.errors import InputError
from tlx.models.leaves import leaves


def test_running_all_stages_then_the_head_is_the_forward_pass():
    model = create_model("resnet20_cifar", seed=3)
    x = images(2, 32, 32)
    assert model.stages == ("stem", "layer1", "layer2", "layer3")
    whole = model(x)
    pooled = model.pool(model.run(model.run(x, 0, 2), 2))
    np.testing.assert_array_equal(model.features(x), pooled)
    np.testing.assert_array_equal(whole, model.head(pooled))
    assert model.features(x).shape == (2, 64)


def test_structure_splits_and_merges():
    model = create_model("resnet20_cifar", num_classes=7, seed=1)
    graphdef, state = nnx.split(model)
    hash(graphdef)
    x = images(1, 32, 32)
    np.testing.assert_array_equal(nnx.merge(graphdef, state)(x), model(x))
    assert model(x).shape == (1, 7)


def test_without_a_head_the_output_is_the_features():
    model = create_model("resnet20_cifar", num_classes=0)
    x = images(1, 32, 32)
    assert model.head is None
    np.testing.assert_array_equal(model(x), model.features(x))


def test_values_depend_on_the_seed_alone():
    one, two, other = (create_model("resnet20_cifar", seed=seed) for seed in (1, 1, 2))
    x = images(1, 32, 32)
    np.testing.assert_array_equal(one(x), two(x))
    assert not np.array_equal(one(x), other(x))


def test_bfloat16_computes_close_to_float32_and_keeps_float32_parameters():
    exact = create_model("resnet20_cifar", seed=3)
    rough = create_model("resnet20_cifar", seed=3, dtype="bfloat16")
    x = images(2, 32, 32)
    assert rough(x).dtype == np.float32
    assert all(leaf.dtype == np.float32 for leaf in leaves(rough).values())
    assert 0 < np.abs(rough(x) - exact(x)).max() < 0.05 * np.abs(exact(x)).max()


def test_unknown_model_shows_the_nearest():
    with pytest.raises(InputError, match="did you mean 'resnet18'"):
        create_model("resnet81")
