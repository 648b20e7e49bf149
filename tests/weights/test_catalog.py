import collections
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tlx import models
from tlx.errors import InputError
from tlx.models import __main__ as command
from tlx.weights import catalog
from tlx.weights.labels import imagenet1k
from tlx.weights.meta import IMAGENET_MEAN, IMAGENET_STD, ImagePreprocess

HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def aliases(monkeypatch):
    """Another project's name for a network, whatever families there are."""
    monkeypatch.setitem(models.FAMILIES, "vit_base_patch16_224", "tlx.models.vit")
    monkeypatch.setitem(models.ALIASES, "vit_b_16", "vit_base_patch16_224")


def test_entries_are_complete():
    found = catalog.entries()
    assert len(found) > 200
    for name, meta in found.items():
        assert name == f"{meta.architecture}.{meta.tag}"
        assert re.fullmatch(r"hub:\w+/[\w.-]+|https://\S+|builtin", meta.source)
        assert meta.filename
        assert meta.license or meta.tag == "bamboo"  # whose licence is not stated
        assert bool(meta.revision) == meta.source.startswith("hub:")
        assert bool(meta.classifier) == bool(meta.num_classes)
        assert 0 < meta.preprocess.size <= meta.preprocess.resize
        if meta.source.startswith("https:"):
            assert re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{64}", meta.sha256)
            assert meta.sha256[:8] in meta.filename
        elif meta.source.startswith("hub:"):
            assert not meta.sha256  # only that of another file is published


def test_entries_of_imagenet_have_its_classes_and_what_was_published():
    found = catalog.entries()
    imagenet = [meta for meta in found.values() if meta.num_classes == 1000]
    assert len(imagenet) > 170
    for meta in imagenet:
        assert meta.class_names is imagenet1k().names
        assert 50 < meta.top1 < 90 and meta.top1_size == meta.preprocess.size
        assert meta.parameters > 1_000_000
    for meta in found.values():
        if meta.num_classes not in (0, 10, 1000) and meta.source != "builtin":
            assert meta.class_names == () and meta.top1 == 0 and meta.parameters


def test_every_architecture_of_the_catalog_is_a_model():
    unknown = {meta.architecture for meta in catalog.entries().values()} - models.FAMILIES.keys()
    assert not unknown


# As torchvision 0.28's enums, timm 1.0.31's configurations and timm's table of results print them, so that a
# mistake in make_catalog.py shows, and without the parity extra too.
@pytest.mark.parametrize(
    ("name", "preprocess", "parameters", "top1"),
    [
        ("resnet50.tv_in1k", ImagePreprocess(224, 256), 25557032, 76.13),
        ("resnet50.tv2_in1k", ImagePreprocess(224, 232), 25557032, 80.858),
        ("resnet50.a1_in1k", ImagePreprocess(224, 235, "bicubic"), 25557032, 80.382),
        ("vgg16_bn.tv_in1k", ImagePreprocess(224, 256), 138365992, 73.36),
        ("inception_v3.tv_in1k", ImagePreprocess(299, 342, mean=HALF, std=HALF), 27161264, 77.294),
        ("efficientnet_b1.tv2_in1k", ImagePreprocess(240, 255), 7794184, 79.838),
        (
            "vit_base_patch16_224.augreg_in21k_ft_in1k",
            ImagePreprocess(224, 248, "bicubic", HALF, HALF),
            86567656,
            84.534,
        ),
        (
            "convnext_tiny.fb_in22k_ft_in1k_384",
            ImagePreprocess(384, 384, "bicubic", resize_mode="squash"),
            28589128,
            84.098,
        ),
        ("vit_small_patch14_dinov2.lvd142m", ImagePreprocess(518, 518, "bicubic"), 22056192, 0.0),
        (
            "swin_tiny_patch4_window7_224.tv_in1k",
            ImagePreprocess(224, 232, "bicubic"),
            28288354,
            81.474,
        ),
    ],
)
def test_facts(name, preprocess, parameters, top1):
    meta = catalog.entries()[name]
    assert meta.preprocess == preprocess
    assert meta.parameters == parameters
    assert meta.top1 == top1


def test_defaults_that_the_catalog_leaves_out_are_imagenets():
    meta = catalog.entries()["resnet50.a1_in1k"]
    assert (meta.preprocess.mean, meta.preprocess.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert (meta.preprocess.channel_order, meta.preprocess.resize_mode) == ("RGB", "short_side")
    assert (meta.num_classes, meta.class_names[309:311]) == (1000, ("bee", "ant"))
    assert (meta.source, meta.filename) == ("hub:timm/resnet50.a1_in1k", "model.safetensors")


def test_labels_are_the_thousand_classes_in_the_order_of_their_ids():
    labels = imagenet1k()
    assert len(labels.names) == len(set(labels.names)) == 1000
    assert list(labels.synsets) == sorted(set(labels.synsets))
    assert all(re.fullmatch(r"n\d{8}", synset) for synset in labels.synsets)
    assert (labels.synsets[0], labels.names[0]) == ("n01440764", "tench")
    assert (labels.synsets[999], labels.names[999]) == ("n15075141", "toilet tissue")


@pytest.mark.slow
@pytest.mark.parity
def test_catalog_is_what_torchvision_and_timm_publish():
    from tests.weights.make_catalog import differences

    assert differences() == []


@pytest.mark.parity
def test_check_names_the_facts_that_differ(monkeypatch):
    from tests.weights import make_catalog

    published = {
        "a.x": {"top1": 70.0, "parameters": 5},
        "a.y": {"parameters": 5},
        "a.z": {"parameters": 5},
    }
    committed = {
        "a.x": {"top1": 70.0, "parameters": 6},
        "a.z": {"parameters": 5},
        "a.gone": {"parameters": 5},
    }
    monkeypatch.setattr(make_catalog, "catalog", lambda results: published)
    monkeypatch.setattr(make_catalog, "committed", lambda: committed)
    assert make_catalog.differences() == [
        "a.gone: is in neither project",
        "a.x: parameters is 6, published is 5",
        "a.y: is missing",
    ]
    assert make_catalog.main(["--check"]) == 1
    monkeypatch.setattr(make_catalog, "committed", lambda: published)
    assert make_catalog.main(["--check"]) == 0


@pytest.mark.parity
def test_published_accuracies_are_those_of_the_entrys_own_size(tmp_path):
    from tests.weights.make_catalog import published

    table = tmp_path / "results.csv"
    table.write_text("model,img_size,top1,top1_err\na.x,288,81.5,18.5\na.x,224,80.25,19.75\n")
    assert published(table) == {("a.x", 288): 81.5, ("a.x", 224): 80.25}


def test_builtin_files_are_there_small_and_intact():
    from tlx.weights.files import sha256_of

    builtin = [meta for meta in catalog.entries().values() if meta.source == "builtin"]
    assert [meta.tag for meta in builtin] == ["glyphs"]
    for meta in builtin:
        path = catalog.BUILTIN / meta.filename
        assert path.stat().st_size <= 2_000_000
        assert sha256_of(path) == meta.sha256


def test_find_takes_tags_full_names_and_other_projects_names(aliases):
    meta = catalog.entries()["vit_base_patch16_224.tv_in1k"]
    for architecture in ("vit_base_patch16_224", "vit_b_16"):
        for tag in ("tv_in1k", "vit_base_patch16_224.tv_in1k", "vit_b_16.tv_in1k"):
            assert catalog.find(architecture, tag) is meta


def test_unknown_tag_names_those_of_the_architecture(aliases):
    with pytest.raises(InputError, match=r"did you mean 'tv_in1k'.*tv2_in1k, tv_in1k"):
        catalog.find("resnet50", "tv_1k")
    with pytest.raises(InputError, match=r"no weights 'resnet18.tv_in1k' for resnet50"):
        catalog.find("resnet50", "resnet18.tv_in1k")
    with pytest.raises(InputError, match=r"for vit_b_16.*augreg_in1k"):
        catalog.find("vit_b_16", "imagenet")


def test_identify_goes_by_content_then_by_a_name_that_only_one_has():
    known = catalog.entries()
    elsewhere = Path("somewhere/model.pth")
    assert catalog.identify(elsewhere, "11ad3fa6" + "0" * 56) is known["resnet50.tv2_in1k"]
    named = catalog.identify(Path("resnet50-11ad3fa6.pth"), "0" * 64)
    assert named == known["resnet50.tv2_in1k"].derived()
    assert catalog.identify(elsewhere, "0" * 64) is None
    assert catalog.identify(Path("model.safetensors"), "0" * 64) is None


def test_identify_knows_files_released_before_they_moved_to_the_hub():
    filename = "resnet50_a1_0-14fe96d1.pth"
    meta = catalog.identify(Path("x.pth"), "14fe96d1" + "0" * 56)
    assert meta is not None and meta.source.endswith(f"/{filename}")
    assert (meta.filename, meta.sha256, meta.revision) == (filename, "14fe96d1", "")
    own = catalog.entries()["resnet50.a1_in1k"]
    assert meta == dataclasses.replace(
        own, source=meta.source, filename=filename, sha256="14fe96d1", revision=""
    )
    assert catalog.identify(Path(filename), "0" * 64) == own.derived()


def test_no_two_files_share_a_checksum_or_a_name_other_than_the_hubs():
    _, files = catalog._read()
    for field, shared in (("sha256", {""}), ("filename", {"model.safetensors"})):
        counts = collections.Counter(getattr(meta, field) for meta in files)
        assert {value for value, count in counts.items() if count > 1} == shared


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "tlx.models", *arguments], capture_output=True, text=True
    )


def test_command_shows_a_table():
    done = run("resnet50")
    assert (done.returncode, done.stderr) == (0, "")
    header, *rows = done.stdout.splitlines()
    assert re.split("  +", header) == list(command.HEADER)
    cells = {row.split()[0]: re.split("  +", row) for row in rows}
    assert list(cells) == [name for name in catalog.entries() if name.startswith("resnet50.")]
    assert cells["resnet50.a1_in1k"] == [
        "resnet50.a1_in1k", "25.56", "224", "0.953", "bicubic", "80.38", "hub:timm", "apache-2.0",
    ]  # fmt: skip
    assert cells["resnet50.tv_in1k"][6:] == ["download.pytorch.org", "bsd-3-clause"]
    assert cells["resnet50.bamboo"][5] == cells["resnet50.bamboo"][7] == "-"


def test_command_matches_weights_models_and_other_names(aliases, monkeypatch):
    lines = command.report("vit_base*.tv_swag_*")
    assert [line.split(" ")[0] for line in lines[1:3]] == [
        "vit_base_patch16_224.tv_swag_e2e_in1k",
        "vit_base_patch16_224.tv_swag_linear_in1k",
    ]
    assert lines[3:5] == ["", "other names: vit_b_16 = vit_base_patch16_224"]
    assert command.report("vit_b_16") == command.report("vit_base_patch16_224")
    assert command.report("vit_b_16.tv_swag*") == lines
    monkeypatch.setitem(models.FAMILIES, "brand_new", "tlx.models.brand_new")
    assert command.report("brand_*") == ["without known weights: brand_new"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnett50"], "no model and no weights match 'resnett50'; did you mean 'resnet50'?"),
        (["RESNET50"], "no model and no weights match 'RESNET50'; did you mean 'resnet50'?"),
        (["--foo"], "unknown option --foo"),
        (["a.py", "b.py"], "one pattern at most, not 2"),
    ],
)
def test_command_refuses_in_one_line(arguments, message, capsys):
    assert command.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}") and captured.err.count("\n") == 1


def test_reading_the_catalog_and_the_command_import_no_frameworks():
    code = (
        "import sys, tlx.models.__main__ as command; assert command.main(['resnet50*']) == 0; "
        "print(sorted({'jax', 'flax', 'torch', 'timm', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_model_is_made_with_few_imports():
    code = (
        "import sys, tlx, tlx.models.resnet; tlx.create_model; import tlx.pretrained; "
        "print(sorted({'orbax', 'grain', 'tensorflow_datasets', 'sklearn', 'matplotlib', 'scipy.optimize', "
        "'huggingface_hub', 'PIL', 'torch', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
