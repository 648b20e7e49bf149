"""Networks judged as they are: on all of ImageNet's classes, and on a few of their own."""

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import tlx
from tests.models.reference import random_arrays
from tlx import config as config_lib
from tlx import main
from tlx.errors import InputError
from tlx.models import abstract_model, family
from tlx.models.leaves import leaves
from tlx.weights.files import write_safetensors
from tlx.weights.labels import imagenet1k

FILE = "squeezenet1_1-b8a52dc0.pth"  # the catalog knows the file by its name
SIZE = 64  # pixels


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """SqueezeNet 1.1 with values drawn by numpy, in a file called as torchvision's is."""
    (table,) = family("squeezenet1_1").key_tables("squeezenet1_1")
    found = leaves(abstract_model("squeezenet1_1", num_classes=1000))
    zeros = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in found.items()}
    path = tmp_path_factory.mktemp("weights") / FILE
    shapes = {key: array.shape for key, array in table.to_source(zeros).items()}
    write_safetensors(random_arrays(shapes), path)
    return path


@pytest.fixture(scope="module")
def logits_of(network):
    """The logits of a picture's file, [1000]."""
    model = tlx.create_model("squeezenet1_1", weights=network, image_size=SIZE)
    graph, state = nnx.split(model)
    forward = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    preprocess = tlx.preprocess(model)
    return lambda path: np.asarray(forward(state, preprocess(Image.open(path))[None]))[0]


def options(network, root, *more):
    return config_lib.build(
        config_lib.load("configs/imagenet.py"),
        {
            "model.name": "squeezenet1_1",
            "model.weights": str(network),
            "data.source": "folder",
            "data.root": str(root),
            "data.image_size": SIZE,
            **dict(more),
        },
    )


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    coarse.resize((90, 75)).save(path)
    return path


def test_a_folder_in_wordnet_order_is_judged_by_all_thousand_classes(tmp_path, network, logits_of):
    labels = imagenet1k()
    root = tmp_path / "pictures"
    for index, synset in enumerate(labels.synsets):
        (root / "val" / synset).mkdir(parents=True)
        if index % 250:
            # Classes without a picture of their own get the one that all have.
            Image.new("RGB", (16, 16)).save(root / "val" / synset / "black.png")
    chosen = []
    for seed in range(4):  # each under the class that the network says it is, but for one
        path = picture(root / "val" / labels.synsets[250 * seed] / f"{seed}.png", seed)
        chosen.append(int(logits_of(path).argmax()))
        if seed < 3:
            path.rename(root / "val" / labels.synsets[chosen[-1]] / path.name)
            picture(root / "val" / labels.synsets[250 * seed] / "black.png", 0)
    black = int(logits_of(root / "val" / labels.synsets[1] / "black.png").argmax())
    found = tlx.evaluate(options(network, root), tmp_path / "run")
    right = found["test/accuracy"] * found["test/examples"]
    by_hand = 0
    for path in sorted(root.rglob("*.png")):
        truth = labels.synsets.index(path.parent.name)
        pixels = np.asarray(Image.open(path))
        guess = black if not pixels.any() else int(logits_of(path).argmax())
        by_hand += guess == truth
    assert by_hand >= 3  # the three that were put where the network sees them
    assert right == pytest.approx(by_hand)
    assert set(found["test/per_class_accuracy"]) <= set(labels.names)
    assert found["weights_base"] == "squeezenet1_1.tv_in1k"  # only named so
    assert not {"weights_tag", "weights_top1"} & found.keys()


def test_a_few_of_its_classes_are_judged_by_their_logits_alone(
    tmp_path, network, logits_of, capsys
):
    root, expected = tmp_path / "pictures", []
    classes = {"ants": 310, "bees": 309, "zebras": 340}
    for seed in range(9):
        name = list(classes)[seed % 3]
        path = picture(root / name / f"{seed}.png", seed)
        kept = logits_of(path)[list(classes.values())]
        expected.append(list(classes)[int(kept.argmax())] == name)
    text = ",".join(f"{name}={index}" for name, index in classes.items())
    subset = ("data.class_subset", text), ("data.test_fraction", "1")
    found = tlx.evaluate(options(network, root, *subset), tmp_path / "run")
    assert found["test/examples"] == 9
    assert found["test/accuracy"] == pytest.approx(np.mean(expected))
    assert 0 < np.mean(expected) < 1
    assert "head.kernel [1, 1, 512, 1000] made to fit [1, 1, 512, 3]" in capsys.readouterr().out


def test_without_the_subset_the_way_out_is_named(tmp_path, network, capsys):
    for seed, name in enumerate(("ant", "bee")):
        picture(tmp_path / "val" / name / "1.png", seed)
    arguments = (
        "--config=configs/imagenet.py",
        "--mode=evaluate",
        "--config.model.name=squeezenet1_1",
        f"--config.model.weights={network}",
        "--config.data.source=folder",
        f"--config.data.root={tmp_path}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert main.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "2 of the 1000" in line and "data.class_subset=auto" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("model.weights", "none", "model.weights is none"), ("model.head", "new", "model.head=new")],
)
def test_a_subset_of_no_known_head_is_refused(tmp_path, network, field, value, message):
    for seed, name in enumerate(("ant", "bee")):
        picture(tmp_path / "val" / name / "1.png", seed)
    subset = ("data.class_subset", "ant=310,bee=309")
    with pytest.raises(InputError, match=message):
        tlx.evaluate(options(network, tmp_path, subset, (field, value)), tmp_path / "run")


@pytest.mark.shared
def test_ants_and_bees_by_the_logits_of_a_trained_squeezenet(tmp_path, shared):
    config = config_lib.build(
        config_lib.load("configs/imagenet.py"),
        {
            "model.name": "squeezenet1_0",
            "model.weights": str(shared / "weights" / "squeezenet1_0_imagenet.pth"),
            "data.source": "folder",
            "data.root": str(shared / "data" / "hymenoptera"),
            "data.class_subset": "ants=310,bees=309",
        },
    )
    found = tlx.evaluate(config, tmp_path / "run")
    assert found["test/examples"] == 153
    assert abs(round(found["test/accuracy"] * 153) - 141) <= 1  # the original is right 141 times
