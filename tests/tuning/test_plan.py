import numpy as np
import pytest

from tlx.config import TuneConfig, build
from tlx.errors import InputError
from tlx.models import abstract_model
from tlx.models.leaves import leaves
from tlx.tuning.plan import FROZEN, audit, digests, make_plan
from tlx.tuning.table import count_parameters, plan_table


@pytest.fixture(scope="module")
def model():
    return abstract_model("resnet18", num_classes=10)


def plan_of(model, **tune):
    return make_plan(
        leaves(model), model.stages, build({f"tune.{k}": v for k, v in tune.items()}).tune
    )


def stages_of(paths):
    return list(dict.fromkeys(path.split(".")[0] for path in paths))


def test_full_trains_everything(model):
    plan = plan_of(model, method="full")
    assert plan.frozen == ()
    assert len(plan.trainable) == 62 and len(plan.statistics) == 40
    assert set(plan.groups) == {"backbone", "head"}
    assert plan.first_trained_stage == 0


def test_head_trains_the_classifier_and_keeps_every_statistic(model):
    plan = plan_of(model, method="head")
    assert plan.trainable == ("head.bias", "head.kernel")
    assert plan.statistics == () and len(plan.frozen) == 100
    assert plan.training_norms == frozenset()
    assert plan.first_trained_stage == len(model.stages)


def test_partial_freezes_the_first_stages_and_their_statistics(model):
    plan = plan_of(model, method="partial", freeze_stages=4)
    assert stages_of(plan.trainable) == ["layer4", "head"]
    assert stages_of(plan.statistics) == ["layer4"]
    assert stages_of(plan.frozen) == ["stem", "layer1", "layer2", "layer3"]
    assert plan.first_trained_stage == 4


def test_every_leaf_is_in_exactly_one_part(model):
    for tune in ({"method": "full"}, {"method": "head"}, {"method": "partial", "freeze_stages": 2}):
        plan = plan_of(model, **tune)
        parts = [*plan.trainable, *plan.statistics, *plan.frozen]
        assert sorted(parts) == sorted(leaves(model))


def test_rules_first_match_wins(model):
    plan = plan_of(
        model, method="rules", rules=r"stem=frozen,.*\.bn\d\..*=norms,layer4.1=late,.*=frozen"
    )
    assert plan.labels["layer1.0.bn1.scale"] == "norms"
    assert plan.labels["layer4.1.bn1.scale"] == "norms"
    assert plan.labels["layer4.1.conv1.kernel"] == "late"
    assert plan.labels["stem.bn.scale"] == FROZEN
    assert plan.first_trained_stage == 1


@pytest.mark.parametrize(("mode", "moving"), [("auto", 10), ("frozen", 0), ("train", 40)])
def test_batchnorm_mode(model, mode, moving):
    plan = plan_of(model, method="partial", freeze_stages=4, batchnorm=mode)
    assert len(plan.statistics) == moving


def test_a_norm_whose_bias_alone_is_trained_uses_batch_statistics_unless_told(model):
    rules = r".*bn\d?\.bias=biases,.*=frozen"
    assert len(plan_of(model, method="rules", rules=rules).statistics) == 40
    assert plan_of(model, method="rules", rules=rules, batchnorm="frozen").statistics == ()


@pytest.mark.parametrize(
    ("tune", "says"),
    [
        (
            {"method": "partial", "freeze_stages": 6},
            "5 stages: stem, layer1, layer2, layer3, layer4",
        ),
        ({"method": "rules"}, "needs tune.rules"),
        ({"method": "rules", "rules": "stem=frozen"}, "no rule matches layer1"),
        ({"method": "rules", "rules": "layer9=x,.*=rest"}, "'layer9' matches no parameter"),
        ({"method": "rules", "rules": ".*=rest,stem=frozen"}, "'stem' matches no parameter"),
        ({"method": "rules", "rules": ".*=frozen"}, "nothing is left to train"),
        ({"method": "rules", "rules": "(=x,.*=rest"}, "not a regular expression"),
        ({"method": "rules", "rules": "stem"}, "is not PATTERN=GROUP"),
        ({"method": "full", "rules": ".*=rest"}, "set tune.method=rules"),
        ({"groups": "haed.lr=10"}, "did you mean 'head'"),
        ({"groups": "head.speed=10"}, "expected GROUP.lr"),
        ({"groups": "head.lr=fast"}, "must be a number"),
    ],
)
def test_what_is_wrong_is_named(model, tune, says):
    with pytest.raises(InputError) as caught:
        plan_of(model, **tune)
    assert says in str(caught.value)


def test_the_table_shows_each_group_and_the_totals(model):
    config = build({"tune.method": "partial", "tune.freeze_stages": 4, "tune.groups": "head.lr=10"})
    found = leaves(model)
    plan = make_plan(found, model.stages, config.tune)
    table = plan_table(plan, found, config.optimizer).splitlines()
    frozen, backbone, head = table[2:5]
    assert (
        frozen.split()[:5] == ["frozen", "stem", "layer1", "layer2", "layer3"]
        and "15 running" in frozen
    )
    assert "layer4" in backbone and "5 batch" in backbone and "0.01" in backbone
    assert head.split()[2:4] == ["sgd", "0.1"] and "5,130" in head
    assert table[-1] == "trained: 8,398,858 of 11,181,642 parameters (75.1 %)"
    assert count_parameters(found, plan.trainable) == 8_398_858


def test_the_audit_names_a_changed_leaf():
    values = {"a": np.zeros(3, np.float32), "b": np.ones(2, np.float32)}
    before = digests(values, ("a", "b"))
    audit(before, digests(values, ("a", "b")))
    values["b"] = np.nextafter(values["b"], np.float32(2))
    with pytest.raises(RuntimeError, match="1 frozen values changed in training: b"):
        audit(before, digests(values, ("a", "b")))


def test_default_tune_config_is_full():
    assert TuneConfig().method == "full"
