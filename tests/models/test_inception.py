import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image

from tests.models.originals.inception import inception, originals
from tests.models.reference import images, random_arrays
from tests.models.zoo import built, table_of, tlx_with, torch_with
from tlx import create_model, save_weights
from tlx.config import TuneConfig, build
from tlx.data.augment import parse
from tlx.data.preprocess import normalize
from tlx.errors import InputError
from tlx.models import abstract_model, default_meta
from tlx.models.leaves import leaves, values, with_values
from tlx.pretrained import source
from tlx.run import refuse_random_values
from tlx.setup import prepare
from tlx.tasks import PLAIN, classification
from tlx.training.mesh import make_mesh, place_batch, replicated
from tlx.training.state import create_state
from tlx.training.step import make_step_function, make_train_step, training_model
from tlx.tuning.plan import make_plans
from tlx.weights import catalog
from tlx.weights.files import read_weights, write_safetensors

pytestmark = pytest.mark.wide

NAME = "inception_v3"
SMALLEST = (75, 75)  # pixels
CLASSIFIERS = {"head.kernel", "head.bias", "aux.fc.kernel", "aux.fc.bias"}
QUICK = {"xla_backend_optimization_level": 0}  # to compile; for functions that run once


@functools.cache
def arrays_of(project="torchvision"):
    """A complete file's arrays, drawn from the names."""
    zeros = {p: np.broadcast_to(np.float32(0), x.shape) for p, x in leaves(built(NAME)).items()}
    names = table_of(NAME, project).to_source(zeros)
    return random_arrays({key: array.shape for key, array in names.items()})


@functools.cache
def drawn():
    return tlx_with(NAME, "torchvision", arrays_of())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file with the auxiliary classifier, and one without."""
    folder = tmp_path_factory.mktemp("inception")
    paths = {project: folder / f"{project}.safetensors" for project in ("torchvision", "timm")}
    for project, path in paths.items():
        write_safetensors(arrays_of(project), path, {"format": "pt"})
    return paths


def trained(model, **tune):
    """The model in the modes of a training, and its plan."""
    (*_, plan) = make_plans(leaves(model), model.stages, TuneConfig(**tune), model.auxiliary)
    return training_model(model, plan, "float32"), plan


def compiled(model, call, *arguments):
    """`call(network, ...)` as a function of the state of the network."""
    graphdef, state = nnx.split(model)
    function = jax.jit(lambda state, *rest: call(nnx.merge(graphdef, state), *rest))
    return function.lower(state, *arguments).compile(compiler_options=QUICK)


def outputs(model, size):
    """The shapes of what training computes; nothing is."""
    graphdef, state = nnx.split(model)
    x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    return jax.eval_shape(
        lambda state, x: nnx.merge(graphdef, state).training_outputs(x, None), state, x
    )


def test_training_has_the_auxiliary_logits_and_the_weight_of_their_loss():
    model, _ = trained(abstract_model(NAME, num_classes=7), method="full")
    assert model.auxiliary == (("aux", 3, 0.4),)
    logits, ((auxiliary, _),) = outputs(model, (299, 320))
    assert logits.shape == auxiliary.shape == (2, 7)
    assert logits.dtype == auxiliary.dtype == jnp.float32


@pytest.mark.parametrize(
    ("tune", "is_trained"),
    [
        ({"method": "full"}, True),
        ({"method": "head"}, False),
        ({"method": "partial", "freeze_stages": 2}, True),
        ({"method": "partial", "freeze_stages": 3}, False),
        ({"method": "rules", "rules": ("aux=frozen", "head=head", ".*=backbone")}, False),
    ],
)
def test_auxiliary_classifier_is_trained_where_a_stage_before_it_is(tune, is_trained):
    model, plan = trained(built(NAME), **tune)
    assert (model.auxiliary == ()) is not is_trained
    assert any(path.startswith("aux.") for path in plan.trainable) is is_trained
    assert any(path.startswith("aux.") for path in plan.statistics) is is_trained
    assert len(outputs(model, (299, 299))[1]) == int(is_trained)


def test_frozen_auxiliary_classifier_costs_nothing():
    whole, frozen = (trained(built(NAME), method=method)[0] for method in ("full", "head"))

    def flops(model, call):
        x = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
        return compiled(model, call, x).cost_analysis()["flops"]

    forward = flops(frozen, lambda network, x: network(x))
    assert flops(frozen, lambda network, x: network.training_outputs(x, None)) == forward
    assert flops(whole, lambda network, x: network.training_outputs(x, None)) > forward


def test_inference_does_not_read_the_auxiliary_classifier():
    model, x = drawn(), images(1, *SMALLEST)
    forward = compiled(model, lambda network, x: network(x), x)
    poisoned = {
        path: np.full_like(v, np.nan) if path.startswith("aux.") else v
        for path, v in values(model).items()
    }
    logits = forward(nnx.state(with_values(model, poisoned)), x)
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(logits, forward(nnx.state(model), x))


def test_pictures_that_are_too_small_are_refused():
    model, _ = trained(built(NAME), method="head")
    assert outputs(model, SMALLEST)[0].shape == (2, 1000)
    for size in ((74, 299), (20, 20)):
        with pytest.raises(InputError, match="pictures are too small for inception_v3"):
            outputs(model, size)
    whole, _ = trained(built(NAME), method="full")
    with pytest.raises(InputError, match=r"at least 17x17 .* has 16x17.*aux=frozen"):
        outputs(whole, (298, 299))


def test_dropout_before_the_classifier_is_seeded_and_half():
    model, _ = trained(drawn(), method="head")
    assert model.dropout == 0.5
    assert abstract_model(NAME, num_classes=2, dropout=0.1).dropout == 0.1
    with pytest.raises(InputError, match="no residual branches"):
        abstract_model(NAME, num_classes=2, drop_path=0.1)
    # An identity for a classifier: logits are what dropout leaves of the features.
    identity = {"head.kernel": np.eye(2048, dtype=np.float32), "head.bias": np.zeros(2048)}
    model = with_values(model, values(model) | identity)

    def both(network, x, key):
        return network.features(x), network.training_outputs(x, key)[0]

    x, keys = images(1, *SMALLEST), [jax.random.key(seed) for seed in (1, 1, 2)]
    forward = compiled(model, both, x, keys[0])
    (features, one), (_, two), (_, other) = (forward(nnx.state(model), x, key) for key in keys)
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)
    kept = np.asarray(one != 0)
    np.testing.assert_allclose(np.asarray(one)[kept], 2 * np.asarray(features)[kept], rtol=1e-6)
    assert abs(kept.mean() / np.mean(features != 0) - 0.5) < 0.05


def test_another_number_of_classes_draws_both_classifiers_afresh(files):
    found = source(NAME, str(files["torchvision"]), num_classes=5, head="new")
    assert set(found.loaded.fresh) == CLASSIFIERS
    assert {found.leaves[path].shape[-1] for path in CLASSIFIERS} == {5}
    kept = source(NAME, str(files["torchvision"]))
    assert kept.loaded.fresh == kept.loaded.dropped == ()


def test_without_a_head_there_is_no_auxiliary_classifier(files):
    model = create_model(NAME, num_classes=0, weights=files["torchvision"])
    assert model.head is None
    assert model.aux is None
    features, further = outputs(model, SMALLEST)
    assert features.shape == (2, 2048)
    assert further == ()
    x = images(1, *SMALLEST)
    both = compiled(model, lambda network, x: (network.features(x), network(x)), x)
    np.testing.assert_array_equal(*both(nnx.state(model), x))
    dropped = source(NAME, str(files["torchvision"]), num_classes=0).loaded.dropped
    assert {key.split(".")[0] for key in dropped} == {"AuxLogits", "fc"}


def test_files_without_the_auxiliary_classifier_are_read_and_written_as_they_are(files, tmp_path):
    assert len(arrays_of()) - len(arrays_of("timm")) == 14
    found = {project: source(NAME, str(path)) for project, path in files.items()}
    assert {project: each.file.table.name for project, each in found.items()} == {
        project: project for project in files
    }
    auxiliary = {path for path in leaves(built(NAME)) if path.startswith("aux.")}
    assert set(found["timm"].loaded.fresh) == auxiliary
    zeros = {p: np.zeros(x.shape, np.float32) for p, x in found["timm"].leaves.items()}
    model = with_values(found["timm"].model, zeros | found["timm"].loaded.arrays)
    save_weights(model, tmp_path / "back.safetensors")
    back = read_weights(tmp_path / "back.safetensors")
    assert back.keys() == arrays_of("timm").keys()
    assert all(back[key].tobytes() == array.tobytes() for key, array in arrays_of("timm").items())


def test_without_the_auxiliary_classifier_a_network_can_be_evaluated(files, tmp_path):
    for name in ("ant", "bee"):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (30, 30)).save(tmp_path / "val" / name / "1.png")
    config = {
        "model.name": NAME,
        "model.weights": str(files["timm"]),
        "data.source": "folder",
        "data.root": str(tmp_path),
        "data.class_subset": "ant=1,bee=0",
    }
    setup, _ = prepare(build(config), training=False)
    assert all(path.startswith("aux.") for path in setup.weights.loaded.fresh)
    refuse_random_values(setup)
    setup, _ = prepare(build(config | {"data.class_subset": ""}), training=False)
    with pytest.raises(InputError, match="2 values come from no file"):
        refuse_random_values(setup)


def test_known_weights_are_prepared_as_the_network_wants_them():
    for tag in ("tv_in1k", "tf_in1k", "tf_adv_in1k"):
        assert catalog.find(NAME, tag).preprocess.mean == default_meta(NAME).preprocess.mean
        assert catalog.find(NAME, tag).preprocess.std == default_meta(NAME).preprocess.std
    assert catalog.find(NAME, "tv_in1k").preprocess == default_meta(NAME).preprocess
    assert {catalog.find(NAME, tag).classifier for tag in ("tv_in1k", "gluon_in1k")} == {"fc"}


@pytest.mark.parity
def test_preprocessing_has_torchvisions_transform_of_the_input():
    import torch

    pixels = np.random.default_rng(0).integers(0, 256, (1, 97, 131, 3), np.uint8)
    module = inception(transform_input=True).eval()
    module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in arrays_of().items()})
    of_imagenet = normalize(pixels, default_meta("resnet50").preprocess)
    with torch.no_grad():
        expected = module(torch.from_numpy(of_imagenet.transpose(0, 3, 1, 2).copy())).numpy()
    x = normalize(pixels, default_meta(NAME).preprocess)
    ours = compiled(drawn(), lambda network, x: network(x), x)(nnx.state(drawn()), x)
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parity
@pytest.mark.slow
def test_auxiliary_logits_loss_and_gradients_equal_torchvisions():
    import torch

    pixels = np.random.default_rng(1).integers(0, 256, (2, 299, 299, 3), np.uint8)
    targets = np.array([3, 700])
    model, plan = trained(drawn(), method="full", batchnorm="frozen")
    model.dropout = 0.0
    x = normalize(pixels, model.meta.preprocess)

    module = torch_with(originals(NAME)[0], arrays_of())
    module.training = True  # its BatchNorms and its dropout are not
    theirs, theirs_auxiliary = module(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    entropy = functools.partial(torch.nn.functional.cross_entropy, target=torch.tensor(targets))
    expected_loss = entropy(theirs) + 0.4 * entropy(theirs_auxiliary)
    expected_loss.backward()

    forward = compiled(model, lambda network, x: network.training_outputs(x, None), x)
    logits, ((auxiliary, _),) = forward(nnx.state(model), x)
    for ours, expected in ((logits, theirs), (auxiliary, theirs_auxiliary)):
        expected = expected.detach().numpy()
        assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()

    loss, gradients = loss_and_gradients(model, plan, pixels, targets)
    np.testing.assert_allclose(loss, expected_loss.item(), rtol=1e-5)
    table = table_of(NAME, "torchvision")
    zeros = {p: np.zeros(x.shape, np.float32) for p, x in leaves(model).items()}
    found = table.to_source(zeros | gradients, {})
    for name, parameter in module.named_parameters():
        expected = parameter.grad.numpy()
        assert np.abs(expected).max() > 0, name
        error = np.linalg.norm(found[name] - expected) / np.linalg.norm(expected)
        # One value that rounds to the other side of a ReLU's 0 changes the gradient of a unit, and
        # of all before it, by a thousandth.
        assert error <= (1e-5 if name.startswith(("fc", "AuxLogits")) else 1e-2), (name, error)


def loss_and_gradients(model, plan, pixels, targets):
    """Of one training step; its optimizer changes nothing and keeps the gradients."""
    keep = optax.GradientTransformation(
        lambda parameters: jax.tree.map(jnp.zeros_like, parameters),
        lambda gradients, _, parameters: (jax.tree.map(jnp.zeros_like, parameters), gradients),
    )
    mesh = make_mesh()
    state, frozen = create_state(values(model), plan, keep, replicated(mesh))
    function = make_step_function(
        model,
        classification,
        plan,
        keep,
        parse((), model.meta.preprocess),
        dtype="float32",
        loss_options=PLAIN,
        seed=0,
    )
    step = make_train_step(function, mesh)
    batch = {"inputs": pixels, "targets": targets, "weight": np.ones(len(pixels), np.float32)}
    arguments = (state, frozen, place_batch(batch, mesh), np.int32(0))
    state, metrics = step.lower(*arguments).compile(compiler_options=QUICK)(*arguments)
    return float(metrics["loss"]), {p: np.asarray(g) for p, g in state.optimizer.items()}


@pytest.mark.parity
def test_initial_values_are_distributed_as_torchvisions():
    from tests.models.reference import torchvision_model

    expected = torchvision_model(NAME, init_weights=True, transform_input=False).state_dict()
    found = leaves(built(NAME))
    table = table_of(NAME, "torchvision")
    some = ("Conv2d_4a_3x3.conv", "Mixed_7c.branch3x3_2a.conv", "AuxLogits.conv1.conv")
    for name in (*some, "AuxLogits.fc", "fc"):
        theirs = expected[f"{name}.weight"].numpy()
        (path,) = table.to_target({f"{name}.weight": theirs}).arrays
        ours = np.asarray(found[path].init(jax.random.key(0), found[path].shape, jnp.float32))
        assert ours.std() == pytest.approx(theirs.std(), rel=0.03), name
        # Neither is cut off at two deviations.
        assert np.abs(theirs).max() > 3 * theirs.std()
        assert np.abs(ours).max() > 3 * ours.std()
