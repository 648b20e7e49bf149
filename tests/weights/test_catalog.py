import re

import pytest

from tlx.errors import InputError
from tlx.models import FAMILIES, family
from tlx.weights import catalog


def test_entries_are_complete_and_their_names_are_unique():
    found = catalog.entries()
    assert len(found) == len({meta.filename for meta in found.values()})
    for name, meta in found.items():
        assert meta.architecture in FAMILIES
        assert name == f"{meta.architecture}.{meta.tag}"
        assert re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{64}", meta.sha256)
        assert meta.license and meta.source and meta.num_classes
        assert (
            meta.classifier == family(meta.architecture).default_meta(meta.architecture).classifier
        )


@pytest.mark.parity
def test_torchvision_entries_are_torchvisions_own():
    from tests.torchvision_import import import_torchvision

    models = import_torchvision().models
    versions = {"tv_in1k": "IMAGENET1K_V1", "tv2_in1k": "IMAGENET1K_V2"}
    checked = 0
    for meta in catalog.entries().values():
        if meta.tag not in versions:
            continue
        theirs = models.get_model_weights(meta.architecture)[versions[meta.tag]]
        transform = theirs.transforms()
        assert meta.source == theirs.url
        assert (meta.preprocess.size, meta.preprocess.resize) == (
            transform.crop_size[0],
            transform.resize_size[0],
        )
        assert (list(meta.preprocess.mean), list(meta.preprocess.std)) == (
            transform.mean,
            transform.std,
        )
        assert meta.preprocess.interpolation == transform.interpolation.value
        assert meta.num_classes == len(theirs.meta["categories"])
        checked += 1
    assert checked == 8


def test_builtin_files_are_there_small_and_intact():
    from tlx.weights.files import sha256_of

    builtin = [meta for meta in catalog.entries().values() if meta.source == "builtin"]
    assert [meta.tag for meta in builtin] == ["glyphs"]
    for meta in builtin:
        path = catalog.BUILTIN / meta.filename
        assert path.stat().st_size <= 2_000_000
        assert sha256_of(path) == meta.sha256


def test_unknown_tag_names_those_of_the_architecture():
    with pytest.raises(InputError, match=r"did you mean 'tv_in1k'.*tv_in1k, tv2_in1k"):
        catalog.find("resnet50", "tv_1k")
