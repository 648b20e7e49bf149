"""What differs between training and inference: batch statistics, dropout, stochastic depth."""

import re
from collections import Counter

import jax
import numpy as np
import pytest
from flax import nnx

from tests.models.originals import NAMES, module_of
from tests.models.reference import images, timm_model, torchvision_model
from tests.models.zoo import TOLERANCE, built, table_of, torch_with
from tlx import create_model, save_weights
from tlx.config import TuneConfig
from tlx.errors import InputError
from tlx.models import FAMILIES, abstract_model, default_meta
from tlx.models.base import Rates
from tlx.models.layers import BatchNorm
from tlx.models.leaves import leaves, values, with_values
from tlx.models.resnet import PRESETS, ResNet, ResNetPreset
from tlx.models.vgg import VGG, VGGPreset
from tlx.training.step import training_model
from tlx.tuning.plan import make_plans

pytestmark = pytest.mark.wide

OWN_TESTS = {"convnext", "swin", "vit"}  # families whose rates their own test files compare
# torchvision's names where they are others; timm's variants have none there.
TORCHVISION = {"mobilenetv2_100": "mobilenet_v2"}
TIMM = {n for n in NAMES if re.fullmatch(r"resnet\d+d|mobilenetv3_.*|tf_.*", n)}


def family_of(name):
    return FAMILIES[name].rsplit(".", 1)[1]


def compile_quickly(function, *args):
    """The function compiled for arguments like these, with a small compilation effort."""
    lowered = jax.jit(function).lower(*args)
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 0})


def in_training(model, method="full"):
    """The model in the modes that training with the method gives it."""
    (*_, plan) = make_plans(leaves(model), model.stages, TuneConfig(method=method))
    return training_model(model, plan, "float32")


# Batch statistics


def copy_of(module):
    """The state of a torch module, which changes its own in place."""
    return {key: np.array(value.numpy()) for key, value in module.state_dict().items()}


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "momentum", "epsilon"),
    [("resnet18", 0.1, 1e-5), ("mobilenet_v3_small", 0.01, 1e-3)],
)
def test_five_training_passes_give_the_logits_and_statistics_of_pytorch(name, momentum, epsilon):
    import torch

    original = module_of(name).originals(name)[0]
    assert original.table == "torchvision"
    module = torch_with(original)
    table = table_of(name, original.table)
    arrays = table.to_target(copy_of(module)).arrays
    model = in_training(abstract_model(name, num_classes=1000, dropout=0, drop_path=0))
    norms = [m for _, m in nnx.iter_modules(model) if isinstance(m, BatchNorm)]
    theirs = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == len(theirs)
    assert {(m.momentum, m.epsilon, m.use_running_average) for m in norms} == {
        (momentum, epsilon, False)
    }
    assert {(m.momentum, m.eps) for m in theirs} == {(momentum, epsilon)}
    module.train()
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout) or type(part).__name__ == "StochasticDepth":
            part.p = 0.0

    def forward(state, x, key):
        network = with_values(model, state)
        logits, further = network.training_outputs(x, key)
        assert further == ()
        return logits, values(network)

    state = arrays
    batches = 1.5 * np.stack([images(6, 48 + i, 50)[:, :48] for i in range(5)]) + 0.3
    passed = compile_quickly(forward, state, batches[0], jax.random.key(0))
    for x in batches:
        logits, state = passed(state, x, jax.random.key(0))
        with torch.no_grad():
            nchw = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
            expected = module(nchw).numpy()
        assert expected.std() > 0.01 * np.abs(expected).max()
        assert np.abs(logits - expected).max() <= TOLERANCE * np.abs(expected).max()
    after = table.to_target(copy_of(module)).arrays
    assert after.keys() == state.keys()
    for path, expected in after.items():
        error = np.abs(state[path] - expected).max()
        assert error <= TOLERANCE * np.abs(expected).max(), path
        moved = path.endswith((".mean", ".var"))
        assert np.array_equal(expected, arrays[path]) != moved, path


# Default rates and moments


def rates_of(model):
    """Rates of dropout and of stochastic depth, each in the order of the forward pass."""
    drops, paths = [], []
    for part in (*model.stages, *(name for name, _, _ in model.auxiliary)):
        found = dict(nnx.iter_modules(getattr(model, part)))
        for path in sorted(found):
            drops += [found[path].dropout] if hasattr(found[path], "dropout") else []
            paths += [found[path].drop_path] if hasattr(found[path], "drop_path") else []
    return [rate for rate in (*drops, model.dropout) if rate], paths


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:The default weight initialization")
@pytest.mark.parametrize(
    "name",
    [n for n in NAMES if family_of(n) not in OWN_TESTS and "_cifar" not in n and n not in TIMM],
)
def test_default_rates_and_batchnorms_are_those_of_torchvision(name):
    import torch

    with torch.device("meta"):
        module = torchvision_model(TORCHVISION.get(name, name))
    dropouts = [m.p for m in module.modules() if isinstance(m, torch.nn.Dropout)]
    depths = [m.p for m in module.modules() if type(m).__name__ == "StochasticDepth"]
    norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    own_norms = [m for _, m in nnx.iter_modules(built(name)) if isinstance(m, BatchNorm)]
    assert Counter((m.momentum, m.epsilon) for m in own_norms) == Counter(
        (m.momentum, m.eps) for m in norms
    )
    drops, paths = rates_of(built(name))
    assert drops == dropouts
    np.testing.assert_allclose(paths, depths or [0.0] * len(paths), rtol=1e-12)


# timm's own default is to drop nothing; these are its published recipes (dropout, stochastic depth).
RECIPES = {"mobilenetv3_large_100": (0.2, 0.2), "mobilenetv3_small_100": (0.2, 0.0)}
RECIPES |= {"tf_efficientnetv2_s": (0.2, 0.2)}


@pytest.mark.parity
@pytest.mark.parametrize("name", sorted(TIMM))
def test_default_rates_grow_as_timms_do(name):
    import torch

    dropout, drop_path = RECIPES.get(name, (0.0, 0.0))
    with torch.device("meta"):
        module = timm_model(name, drop_rate=dropout, drop_path_rate=drop_path)
    blocks = [m for m in module.modules() if hasattr(m, "drop_path")]
    depths = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    if name.startswith("mobilenetv3"):
        depths.pop()  # the last convolution is a block there, without a residual branch
    drops, paths = rates_of(built(name))
    assert module.drop_rate == dropout
    assert drops == [dropout] * (dropout > 0)
    np.testing.assert_allclose(paths, depths or [0.0] * len(paths), rtol=1e-12)
    assert (max(paths) > 0.8 * drop_path) if drop_path else not any(paths)


def test_all_families_rates_are_compared_somewhere():
    names = [n for n in NAMES if family_of(n) not in OWN_TESTS]
    assert {family_of(n) for n in names} | OWN_TESTS == {family_of(n) for n in NAMES}
    for name in names:
        if "_cifar" in name:
            assert rates_of(built(name)) == ([], [0.0] * sum(PRESETS[name].depths))


@pytest.mark.parametrize(
    ("name", "options", "dropout", "last"),
    [
        ("mobilenetv2_100", {}, [0.2], 0.0),
        ("mobilenetv2_100", {"dropout": 0}, [], 0.0),
        ("mobilenetv2_100", {"dropout": 0.3, "drop_path": 0.17}, [0.3], 0.16),
        ("efficientnet_b0", {}, [0.2], 0.2 * 15 / 16),
        ("efficientnet_b0", {"drop_path": 0}, [0.2], 0.0),
        ("efficientnet_b0", {"dropout": 0, "drop_path": 0.3}, [], 0.3 * 15 / 16),
        ("resnet20_cifar", {}, [], 0.0),
        ("resnet20_cifar", {"dropout": 0.3, "drop_path": 0.4}, [0.3], 0.4),
        ("convnext_tiny", {"dropout": 0.3}, [0.3], 0.1),
        ("convnext_tiny", {"drop_path": 0}, [], 0.0),
        ("swin_tiny_patch4_window7_224", {"dropout": 0.3, "drop_path": 0.4}, [0.3], 0.4),
        ("vit_tiny_patch16_224", {"dropout": 0.3, "drop_path": 0.4}, [0.3], 0.4),
        ("deit_tiny_patch16_224", {"drop_path": 0}, [], 0.0),
        ("vgg11", {}, [0.5, 0.5], 0.0),
        ("vgg11", {"dropout": 0.3}, [0.3, 0.3], 0.0),
        ("vgg11", {"dropout": 0, "drop_path": 0}, [], 0.0),
        ("squeezenet1_1", {"dropout": 0.3, "drop_path": 0}, [0.3], 0.0),
        ("densenet121", {"dropout": 0.3, "drop_path": 0}, [0.3], 0.0),
    ],
)
def test_given_rates_take_the_place_of_the_architectures(name, options, dropout, last):
    drops, paths = rates_of(abstract_model(name, num_classes=3, **options))
    assert drops == dropout
    assert max(paths, default=0.0) == pytest.approx(last)
    if len(paths) > 1:
        assert paths[0] == 0
        np.testing.assert_allclose(np.diff(paths), last / (len(paths) - 1), rtol=1e-9)


def test_create_model_takes_the_rates(tmp_path):
    path = tmp_path / "net.safetensors"
    save_weights(filled(abstract_model("resnet20_cifar", num_classes=10)), path)
    model = create_model("resnet20_cifar", weights=path, dropout=0.3, drop_path=0.4)
    assert rates_of(model) == ([0.3], pytest.approx([0.05 * i for i in range(9)]))
    assert rates_of(create_model("resnet20_cifar", weights=path, dropout=0)) == ([], [0.0] * 9)


@pytest.mark.parametrize("name", ["vgg11_bn", "squeezenet1_1", "densenet121"])
def test_stochastic_depth_without_residual_branches_is_refused(name):
    with pytest.raises(InputError, match=rf"{name} has no residual branches.*drop_path=0\.1"):
        create_model(name, drop_path=0.1)


# Dropout


def with_adding_head(model):
    """The model with a head that adds 1 to what it reads: what it reads can be dropped, 1 cannot."""
    arrays = values(model)
    arrays["head.kernel"] = np.eye(model.num_features, dtype=np.float32)
    arrays["head.kernel"] = arrays["head.kernel"].reshape(model.head.kernel[...].shape)
    arrays["head.bias"] = np.ones_like(arrays["head.bias"])
    return with_values(model, arrays)


def filled(model):
    """The abstract model with random values that keep the activations' scale."""
    rng, arrays = np.random.default_rng(0), {}
    for path, leaf in leaves(model).items():
        draw = rng.standard_normal(leaf.shape, np.float32)
        if path.endswith("kernel"):
            arrays[path] = draw * np.float32((2 / np.prod(leaf.shape[:-1])) ** 0.5)
        else:
            arrays[path] = np.float32(path.endswith(("scale", "var"))) + 0.1 * np.tanh(draw)
    return with_values(model, arrays)


def maps(count, side, channels):
    rng = np.random.default_rng(count + channels)
    return rng.standard_normal((count, side, side, channels)).astype(np.float32)


def tiny_vgg(rates):
    """A VGG of few hidden units, whose second hidden layer returns what it reads."""
    preset, meta = VGGPreset((1,) * 5, batchnorm=True, hidden=500), default_meta("vgg11_bn")
    model = VGG(preset, num_classes=500, meta=meta, rates=rates)
    model = filled(model)
    arrays = values(model) | {"prelogits.fc2.kernel": np.eye(500, dtype=np.float32)}
    arrays["prelogits.fc2.bias"] = np.zeros(500, np.float32)
    return with_adding_head(with_values(model, arrays))


def read_in_training(model, x, *seeds):
    """What the adding head reads, without a key, then with the key of each seed."""
    graphdef, state = nnx.split(model)

    def forward(state, x, key):
        return nnx.merge(graphdef, state)(x, key)

    dropping = compile_quickly(forward, state, x, jax.random.key(0))
    inference = compile_quickly(lambda state, x: forward(state, x, None), state, x)
    logits = [inference(state, x), *(dropping(state, x, jax.random.key(seed)) for seed in seeds)]
    return [np.asarray(found) - 1 for found in logits]


def check_dropped(found, whole, rate):
    """Each value is zero or scaled up, and as many are zero as the rate says."""
    largest = np.abs(whole).max()
    there = np.abs(whole) > 1e-3 * largest
    dropped = found[there] == 0
    expected = np.where(dropped, 0, whole[there] / (1 - rate))
    np.testing.assert_allclose(found[there], expected, rtol=1e-5, atol=2e-6 * max(largest, 1))
    assert there.sum() > 1000
    assert abs(dropped.mean() - rate) < 5 * (rate * (1 - rate) / there.sum()) ** 0.5


@pytest.mark.parametrize(
    ("name", "size", "options", "rate"),
    [
        ("resnet20_cifar", 8, {"dropout": 0.3}, 0.3),
        ("mobilenet_v3_small", 32, {}, 0.2),
        ("squeezenet1_1", 32, {}, 0.5),  # a map of one pixel: the features are what the head reads
    ],
)
def test_dropout_before_the_classifier_has_its_rate_and_follows_the_key(name, size, options, rate):
    features = abstract_model(name, num_classes=0).num_features
    model = with_adding_head(filled(abstract_model(name, num_classes=features, **options)))
    x = images(40, size, size)
    whole, one, same, other = read_in_training(model, x, 1, 1, 2)
    check_dropped(one, whole, rate)
    check_dropped(other, whole, rate)
    np.testing.assert_array_equal(one, same)
    assert (one[0] == 0).tolist() != (one[1] == 0).tolist(), "examples have draws of their own"
    assert ((one == 0) != (other == 0)).mean() > rate * (1 - rate) * (whole != 0).mean()


def test_without_rates_a_key_changes_nothing():
    model = filled(abstract_model("mobilenet_v3_small", num_classes=3, dropout=0, drop_path=0))
    whole, keyed = read_in_training(model, images(2, 32, 32), 1)
    np.testing.assert_array_equal(whole, keyed)


def test_vgg_drops_between_its_hidden_layers_and_before_the_classifier():
    model, carry = tiny_vgg(Rates()), maps(20, 7, 512)
    hidden = np.asarray(jax.nn.relu(model.prelogits.fc1(carry)))
    np.testing.assert_array_equal(model.prelogits(carry), hidden)
    check_dropped(np.asarray(model.prelogits(carry, jax.random.key(0))), hidden, 0.5)
    # Both draws, which are independent of each other, are in the logits.
    whole, found, same, other = read_in_training(model, images(16, 32, 32), 1, 1, 2)
    check_dropped(found, whole, 0.75)
    np.testing.assert_array_equal(found, same)
    assert not np.array_equal(found, other)


def test_frozen_stages_drop_nothing_but_a_trained_head_does():
    vgg = tiny_vgg(Rates(dropout=0.3))
    x = images(16, 32, 32)
    whole, found = read_in_training(in_training(vgg, "head"), x, 1)
    check_dropped(found, whole, 0.3)
    resnet = filled(abstract_model("resnet20_cifar", num_classes=10, drop_path=0.5))
    resnet = in_training(resnet, "head")
    x = images(4, 8, 8)
    np.testing.assert_array_equal(*read_in_training(resnet, x, 1))


# Stochastic depth


def check_branches(block, x, rate, shortcut, branch, activation=lambda x: x):
    """Each example has its branch either dropped or scaled up, as many as the rate says."""
    assert block.drop_path == pytest.approx(rate)
    shortcut, branch = np.asarray(shortcut), np.asarray(branch)
    assert np.abs(branch).max() > 0.1 * np.abs(shortcut).max()
    np.testing.assert_allclose(block(x), activation(shortcut + branch), rtol=1e-5, atol=1e-5)
    found, same, other = (np.asarray(block(x, jax.random.key(seed))) for seed in (1, 1, 2))
    without, scaled = activation(shortcut), activation(shortcut + branch / (1 - rate))

    def is_like(expected):
        return np.abs(found - expected).max((1, 2, 3)) <= TOLERANCE * np.abs(expected).max()

    assert (is_like(without) ^ is_like(scaled)).all()
    deviation = (rate * (1 - rate) / len(x)) ** 0.5
    assert abs(is_like(without).mean() - rate) < 4 * deviation
    np.testing.assert_array_equal(found, same)
    assert not np.array_equal(found, other)


def test_resnets_drop_the_branches_of_whole_examples():
    model = filled(abstract_model("resnet20_cifar", num_classes=10, drop_path=0.4))
    block, x = model.layer3[1], maps(300, 4, 64)
    y = jax.nn.relu(block.bn1(block.conv1(x)))
    check_branches(block, x, 0.35, x, block.bn2(block.conv2(y)), jax.nn.relu)
    first, x = model.layer1[0], maps(20, 4, 16)
    np.testing.assert_array_equal(first(x, jax.random.key(0)), first(x))


def test_bottlenecks_drop_the_branch_beside_a_projection():
    preset = ResNetPreset((1, 2), widths=(8, 16), bottleneck=True)
    meta, rates = default_meta("resnet50"), Rates(drop_path=0.5)
    model = ResNet(preset, num_classes=3, meta=meta, rates=rates)
    model = filled(model)
    block, x = model.layer2[0], maps(300, 4, 32)
    y = jax.nn.relu(block.bn2(block.conv2(jax.nn.relu(block.bn1(block.conv1(x))))))
    branch = block.bn3(block.conv3(y))
    check_branches(block, x, 0.25, block.shortcut(x), branch, jax.nn.relu)


def test_inverted_residuals_drop_the_branches_of_whole_examples():
    model = filled(abstract_model("efficientnet_b0", num_classes=3, drop_path=0.4))
    block, x = model.stage5[2], maps(300, 2, 112)
    check_branches(block, x, 0.25, x, np.asarray(block(x)) - x)
    first, x = model.stage5[0], maps(20, 2, 80)
    assert first.drop_path > 0 and not first.residual
    np.testing.assert_array_equal(first(x, jax.random.key(0)), first(x))
