import jax
import numpy as np
import pytest
from flax import nnx

from tests.models.make_goldens import CASES, PATH
from tests.models.reference import images, random_arrays, torch_model
from tlx import create_model, list_models
from tlx.errors import InputError
from tlx.models import abstract_model, family
from tlx.models.leaves import leaves, with_values
from tlx.pretrained import parameter_count, source

# torchvision's documented num_params; the CIFAR counts of github.com/akamaster/pytorch_resnet_cifar10.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet20_cifar": 269_722,
    "resnet32_cifar": 464_154,
    "resnet44_cifar": 658_586,
    "resnet56_cifar": 853_018,
    "resnet110_cifar": 1_727_962,
}


def network(name: str, *, num_classes: int | None = None):
    """The model with the weights that the goldens were made with, through its key table."""
    table = family(name).key_tables(name)[0]
    found = source(name).model
    shapes = {}
    for path, leaf in leaves(found).items():
        placeholder = np.broadcast_to(np.float32(0), leaf.shape)
        ((key, array),) = table.to_source({path: placeholder}).items()
        shapes[key] = array.shape
    arrays = table.to_target(random_arrays(shapes)).arrays
    return with_values(found, arrays)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count_is_the_published_one(name):
    meta = family(name).default_meta(name)
    assert parameter_count(abstract_model(name, num_classes=meta.num_classes)) == PARAMETERS[name]


def test_every_model_is_listed_and_counted():
    assert set(list_models()) == set(PARAMETERS)
    assert list_models("*_cifar") == [name for name in PARAMETERS if name.endswith("_cifar")]


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_the_originals(name):
    expected = np.load(PATH)[name]
    logits = np.asarray(jax.jit(lambda m, x: m(x))(network(name), images(*CASES[name])))
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parity
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet20_cifar"])
def test_features_and_stages_equal_the_originals(name):
    import torch

    original = torch_model(name)
    shapes = {key: tuple(value.shape) for key, value in original.state_dict().items()}
    original.load_state_dict(
        {k: torch.from_numpy(np.array(v)) for k, v in random_arrays(shapes).items()}
    )
    model = network(name)
    x = images(2, 64, 48)
    seen = {}
    for stage in model.stages[1:]:
        getattr(original, stage).register_forward_hook(
            lambda _m, _i, y, s=stage: seen.update({s: y.detach().numpy()})
        )
    with torch.no_grad():
        original(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    carry = model.run(x, 0, 1)
    for index, stage in enumerate(model.stages[1:], 1):
        carry = model.run(carry, index, index + 1)
        expected = seen[stage].transpose(0, 2, 3, 1)
        assert np.abs(carry - expected).max() <= 1e-5 * np.abs(expected).max(), stage
    pooled = expected.mean((1, 2))
    assert np.abs(model.features(x) - pooled).max() <= 1e-5 * np.abs(pooled).max()


@pytest.mark.parity
@pytest.mark.parametrize("name", PARAMETERS)
def test_keys_are_exactly_the_originals_and_survive_the_round_trip(name):
    original = torch_model(name).state_dict()
    arrays = random_arrays({key: tuple(value.shape) for key, value in original.items()})
    (table,) = family(name).key_tables(name)
    conversion = table.to_target(arrays)
    meta = family(name).default_meta(name)
    found = leaves(abstract_model(name, num_classes=meta.num_classes))
    assert conversion.unknown == ()
    assert {path: a.shape for path, a in conversion.arrays.items()} == {
        p: leaf.shape for p, leaf in found.items()
    }
    back = table.to_source(conversion.arrays, conversion.carried)
    assert back.keys() == arrays.keys()
    assert all(back[key].tobytes() == arrays[key].tobytes() for key in arrays)


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
