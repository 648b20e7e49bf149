"""One suite over all models: counts, goldens, parity with the originals, and the way back."""

import numpy as np
import pytest

from tests.models.make_goldens import FOLDER
from tests.models.originals import NAMES, cases, module_of
from tests.models.reference import images
from tests.models.zoo import (
    built,
    check_fine_tuned_export,
    check_parity,
    check_round_trip,
    outputs_of_tlx,
    tlx_drawn,
)
from tlx.models import ALIASES, FAMILIES, abstract_model, default_meta, family, list_models
from tlx.models.leaves import leaves
from tlx.pretrained import parameter_count

pytestmark = pytest.mark.wide


def sizes(name):
    """The size that a model is made for; of those with goldens, some of each family, also one that its strides do not divide."""
    native = default_meta(name).preprocess.size
    odd = getattr(module_of(name), "ODD_SIZES", {}).get(name, (97, 131))
    return [(native, native), *([odd] if odd and name in cases() else [])]


def pairs():
    """(name, which of its originals) for all models; collected without torch.

    A family may say in COMPARED how many of a model's tables are held against originals here, and in SLOW which of
    its models take more than ten seconds.
    """
    found = []
    for name in NAMES:
        module = module_of(name)
        own = len(family(name).key_tables(name))
        marks = [pytest.mark.slow] if name in getattr(module, "SLOW", ()) else []
        for position in range(getattr(module, "COMPARED", {}).get(name, own)):
            found.append(pytest.param(name, position, marks=marks))
    return found


def test_every_model_has_an_original_and_is_listed():
    for name in NAMES:
        assert name in module_of(name).PARAMETERS
        assert name in family(name).PRESETS
        assert default_meta(name).architecture == name
    assert {*NAMES, *ALIASES} <= set(list_models())
    assert set(ALIASES.values()) <= set(FAMILIES)
    assert not {*ALIASES} & {*FAMILIES}


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count_is_the_published_one(name):
    assert parameter_count(built(name)) == module_of(name).PARAMETERS[name]


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_stages_follow_the_contract(name):
    model = built(name)
    found = leaves(model)
    tops = {path.split(".", 1)[0] for path in found}
    auxiliary = {part for part, _, _ in model.auxiliary}
    assert tops <= {*model.stages, *auxiliary, "head"}
    assert set(model.stages) - tops <= {"pool"}, "a stage without values"
    assert model.input_kernel in found
    hash(model.meta)
    without = abstract_model(name, num_classes=0)
    assert {p.split(".", 1)[0] for p in leaves(without)} <= set(model.stages)
    for project in family(name).key_tables(name):
        back = project.to_source(
            {p: np.broadcast_to(np.float32(0), x.shape) for p, x in found.items()}
        )
        conversion = project.to_target(back)
        assert conversion.unknown == ()
        assert {p: a.shape for p, a in conversion.arrays.items()} == {
            p: x.shape for p, x in found.items() if not project.lacks(p)
        }


@pytest.mark.parametrize("name", cases())
def test_logits_equal_the_goldens(name):
    expected = np.load(FOLDER / f"{FAMILIES[name].rsplit('.', 1)[1]}.npz")[name]
    model = tlx_drawn(name, module_of(name).originals(name)[0])
    logits = outputs_of_tlx(model, images(*cases()[name]))["logits"]
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parity
@pytest.mark.parametrize(("name", "which"), pairs())
def test_stages_features_and_logits_equal_the_originals(name, which):
    original = module_of(name).originals(name)[which]
    # Other key tables lead to the same network, so one size tells whether they do.
    for size in sizes(name)[: 1 if which else 2]:
        check_parity(name, original, size)


@pytest.mark.parity
@pytest.mark.parametrize(("name", "which"), pairs())
def test_file_survives_the_round_trip(name, which, tmp_path):
    original = module_of(name).originals(name)[which]
    assert original.table == family(name).key_tables(name)[which].name
    check_round_trip(name, original, tmp_path)


@pytest.mark.parity
@pytest.mark.parametrize("name", cases())
def test_own_values_open_in_the_originals(name, tmp_path):
    _, height, width = cases()[name]
    for original in module_of(name).originals(name):
        check_fine_tuned_export(name, original, tmp_path, (height, width))
