import numpy as np
import pytest

from tlx.config import TuneConfig, build
from tlx.errors import InputError
from tlx.models import abstract_model
from tlx.models.leaves import leaves
from tlx.tuning.plan import FROZEN, audit, digests, make_plans
from tlx.tuning.table import count_parameters, plan_table


@pytest.fixture(scope="module")
def model():
    return abstract_model("resnet18", num_classes=10)


def plan_of(model, **tune):
    return plans_of(model, **tune)[-1]


def plans_of(model, **tune):
    tune = build({f"tune.{k}": v for k, v in tune.items()}).tune
    return make_plans(leaves(model), model.stages, tune)


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


def test_surgical_trains_one_block_of_stages(model):
    plan = plan_of(model, method="surgical", train_stages="layer2,layer1")
    assert stages_of(plan.trainable) == stages_of(plan.statistics) == ["layer1", "layer2"]
    plan = plan_of(model, method="surgical", train_stages="stem,head")
    assert stages_of(plan.trainable) == ["stem", "head"]


def test_gradual_unfreezes_a_stage_more_in_each_phase(model):
    plans = plans_of(model, method="gradual", freeze_stages=2)
    assert [stages_of(plan.trainable) for plan in plans] == [
        ["head"],
        ["layer4", "head"],
        ["layer3", "layer4", "head"],
        ["layer2", "layer3", "layer4", "head"],
    ]
    assert [list(plan.groups) for plan in plans[:2]] == [["head"], ["layer4", "head"]]
    assert stages_of(plans[1].statistics) == ["layer4"]


def test_lpft_has_two_phases(model):
    probe, tune = plans_of(model, method="lpft", freeze_stages=1)
    assert stages_of(probe.trainable) == ["head"] and probe.statistics == ()
    assert stages_of(tune.trainable) == ["layer1", "layer2", "layer3", "layer4", "head"]


def test_bitfit_trains_biases_and_keeps_statistics(model):
    plan = plan_of(model, method="bitfit")
    assert {path.rsplit(".", 1)[1] for path in plan.paths("biases")} == {"bias"}
    assert len(plan.paths("biases")) == 20 and plan.paths("head") == ("head.bias", "head.kernel")
    assert plan.statistics == ()
    assert len(plan_of(model, method="bitfit", batchnorm="train").statistics) == 40


def test_norms_trains_scales_and_biases_on_batch_statistics(model):
    plan = plan_of(model, method="norms")
    assert len(plan.paths("norms")) == 40 and len(plan.statistics) == 40
    vit = abstract_model("vit_tiny_patch16_224", num_classes=10)
    found = plan_of(vit, method="norms").paths("norms")
    assert len(found) == 2 * (2 * 12 + 1)  # two in each of twelve blocks, and the last
    assert all("norm" in path for path in found)


@pytest.mark.parametrize("method", ["full", "gradual"])
def test_layer_decay_multiplies_by_the_distance_from_the_head(model, method):
    plan = plan_of(
        model, method=method, layer_decay=0.5, groups="layer1.lr=3,layer2.weight_decay=0"
    )
    rates = {name: group.lr for name, group in plan.groups.items()}
    assert rates == {
        "stem": 0.5**5, "layer1": 3.0, "layer2": 0.5**3, "layer3": 0.25, "layer4": 0.5, "head": 1.0,
    }  # fmt: skip
    assert plan.groups["layer2"].weight_decay == 0


@pytest.mark.parametrize(("name", "method"), [("squeezenet1_0", "norms"), ("vgg11", "norms")])
def test_methods_without_anything_to_train_but_the_head_are_refused(name, method):
    with pytest.raises(InputError, match="the model has no normalisation"):
        plan_of(abstract_model(name, num_classes=10), method=method)


def test_layer_decay_is_beits_for_a_transformer():
    vit = abstract_model("vit_tiny_patch16_224", num_classes=10)
    rates = {name: g.lr for name, g in plan_of(vit, method="full", layer_decay=0.75).groups.items()}
    assert rates["head"] == rates["norm"] == 1.0
    assert [rates[f"block{i}"] for i in (11, 10, 0)] == [0.75, 0.75**2, 0.75**12]
    assert rates["stem"] == 0.75**13


def test_adapters_train_an_auxiliary_classifier_only_behind_them():
    from tlx.models.adapters import attached
    from tlx.tuning.adapters import chosen

    model = abstract_model("inception_v3", num_classes=10)
    for target, group in (("mixed7", FROZEN), ("mixed5", "head")):
        tune = TuneConfig(method="lora", targets=(target,))
        found = leaves(attached(model, chosen(model, tune)))
        (*_, plan) = make_plans(found, model.stages, tune, model.auxiliary)
        assert plan.labels["aux.fc.kernel"] == group


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "vit_tiny_patch16_224", "inception_v3"])
def test_every_method_puts_every_leaf_in_one_part_in_every_phase(name):
    network = abstract_model(name, num_classes=10)
    found = leaves(network)
    for method in ("full", "head", "partial", "surgical", "gradual", "lpft", "bitfit", "norms"):
        own = {"train_stages": network.stages[1]} if method == "surgical" else {}
        own |= {"freeze_stages": 2} if method == "partial" else {}
        tune = build({f"tune.{k}": v for k, v in ({"method": method} | own).items()}).tune
        for plan in make_plans(found, network.stages, tune, network.auxiliary):
            parts = [*plan.trainable, *plan.statistics, *plan.frozen]
            assert sorted(parts) == sorted(found), method
            assert set(plan.labels) == {path for path, leaf in found.items() if leaf.is_parameter}
            assert set(plan.groups) == set(plan.labels.values()) - {FROZEN}


@pytest.mark.parametrize(
    ("tune", "says"),
    [
        ({"method": "surgical"}, "needs tune.train_stages"),
        (
            {"method": "surgical", "train_stages": "layer5"},
            "no stage 'layer5'; did you mean 'layer4'? (stages: stem, layer1",
        ),
        ({"method": "surgical", "train_stages": "stem,layer2"}, "is no contiguous block"),
        ({"method": "surgical", "train_stages": "stem,stem"}, "is no contiguous block"),
        ({"method": "head", "freeze_stages": 2}, "set tune.method=partial or gradual or lpft"),
        ({"method": "full", "rank": 4}, "set tune.method=lora or dora or bottleneck"),
        (
            {"method": "partial", "freeze_stages": 6},
            "5 stages: stem, layer1, layer2, layer3, layer4",
        ),
        ({"method": "rules"}, "needs tune.rules"),
        (
            {"method": "rules", "rules": "layer1=frozen,layer1=fast,.*=rest"},
            "'layer1' matches no parameter that an earlier rule left",
        ),
        ({"method": "rules", "rules": "stem=frzen,.*=rest"}, "did you mean stem=frozen?"),
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
        ({"groups": "head.lr=1,head.lr=2"}, "tune.groups: head.lr is there twice"),
        ({"groups": "head.options="}, "'head.options=' gives no options"),
        ({"groups": "head.optimizer"}, "'head.optimizer' gives no optimizer"),
    ],
)
def test_what_is_wrong_is_named(model, tune, says):
    with pytest.raises(InputError) as caught:
        plan_of(model, **tune)
    assert says in str(caught.value)


def test_the_table_shows_each_group_and_the_totals(model):
    config = build({"tune.method": "partial", "tune.freeze_stages": 4, "tune.groups": "head.lr=10"})
    found = leaves(model)
    (*_, plan) = make_plans(found, model.stages, config.tune)
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
