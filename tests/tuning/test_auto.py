"""The rule of tune.method=auto, case by case, without a network."""

import dataclasses
import inspect
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from tlx.config import AUTO_FIELDS, FIELDS_OF, METHODS, build, load
from tlx.errors import InputError
from tlx.tuning import auto
from tlx.tuning.auto import Facts, choices_table, choose, decided, methods_for
from tlx.tuning.optax_optimizers import OWN_ARGUMENTS, maker

RESNET = Facts(
    examples=300,
    labels=300,
    class_names=("ant", "bee"),
    picture=450,
    input_size=224,
    takes_small=False,
    attention=False,
    batchnorm=True,
    stages=("stem", "layer1", "layer2", "layer3", "layer4"),
    pretrained=True,
    fresh_stages=(),
    new_head=True,
)
SQUEEZENET = dataclasses.replace(RESNET, batchnorm=False, stages=tuple("abcdefghi"))
VIT = dataclasses.replace(
    RESNET, attention=True, batchnorm=False, stages=("embed", *"0123", "norm")
)


def of(facts, fields=None, **changes):
    """Returns field -> value of what is chosen for these facts, with so many examples of two classes."""
    if "examples" in changes:
        changes.setdefault("labels", changes["examples"])
    config = build({"tune.method": "auto"} | (fields or {}))
    return {c.field: c.value for c in choose(dataclasses.replace(facts, **changes), config)}


@pytest.mark.parametrize(
    ("facts", "changes", "expected"),
    [
        (RESNET, {"examples": 8}, {"tune.method": "head"}),
        (RESNET, {"examples": 398}, {"tune.method": "partial", "tune.freeze_stages": 4}),
        (SQUEEZENET, {"examples": 10}, {"tune.method": "partial", "tune.freeze_stages": 6}),
        (RESNET, {"examples": 400}, {"tune.method": "lpft"}),
        (RESNET, {"examples": 998}, {"tune.method": "lpft"}),
        (RESNET, {"examples": 1000}, {"tune.method": "full"}),
        (RESNET, {"examples": 998, "new_head": False}, {"tune.method": "full"}),
        (VIT, {"examples": 8}, {"tune.method": "head"}),
        (VIT, {"examples": 198}, {"tune.method": "lora", "tune.rank": auto.RANK}),
        (VIT, {"examples": 200}, {"tune.method": "full", "tune.layer_decay": auto.LAYER_DECAY}),
        (RESNET, {"examples": 8, "pretrained": False}, {"tune.method": "full"}),
        (VIT, {"examples": 8, "pretrained": False}, {"tune.method": "full"}),
        (
            RESNET,
            {"examples": 8, "fresh_stages": ("layer4",)},
            {"tune.method": "partial", "tune.freeze_stages": 4},
        ),
        (
            RESNET,
            {"examples": 998, "fresh_stages": ("layer3",)},
            {"tune.method": "partial", "tune.freeze_stages": 3},
        ),
        (RESNET, {"examples": 1000, "fresh_stages": ("layer4",)}, {"tune.method": "full"}),
        (
            VIT,
            {"examples": 8, "fresh_stages": ("3", "norm")},
            {"tune.method": "partial", "tune.freeze_stages": 4},
        ),
        (RESNET, {"examples": 8, "fresh_stages": ("stem", "layer4")}, {"tune.method": "full"}),
    ],
)
def test_the_method(facts, changes, expected):
    chosen = of(facts, **changes)
    own = {name: value for name, value in chosen.items() if name.startswith("tune.")}
    own.pop("tune.groups", None)
    assert own == expected


@pytest.mark.parametrize(
    ("fields", "changes", "method", "reason"),
    [
        (
            {},
            {},
            "lpft",
            "300 examples a class, fewer than 500: the new head first, then everything",
        ),
        ({}, {"examples": 1000}, "full", "500 examples a class, at least 500"),
        ({}, {"new_head": False}, "full", "at least 200, and the head is not new"),
        ({"optimizer.name": "lion"}, {}, "lpft", "fewer than 500"),
        ({"optimizer.name": "prodigy"}, {}, "full", "at least 200; prodigy takes no phases"),
        ({"tune.groups": "head.optimizer=madgrad"}, {}, "full", "madgrad takes no phases"),
        ({"tune.groups": "head.optimizer=lion"}, {}, "lpft", "fewer than 500"),
        ({}, {"examples": 1000, "fresh_stages": ("layer4",)}, "full", "lack layer4; 500 examples"),
    ],
)
def test_the_reason_of_the_method_is_its_threshold(fields, changes, method, reason):
    facts = dataclasses.replace(RESNET, **{"examples": 600} | changes)
    facts = dataclasses.replace(facts, labels=facts.examples)
    first = choose(facts, build({"tune.method": "auto"} | fields))[0]
    assert (first.field, first.value) == ("tune.method", method) and reason in first.reason


@pytest.mark.parametrize(
    ("facts", "says"), [(RESNET, "4 of 5: stem to layer3"), (SQUEEZENET, "6 of 9: a to f")]
)
def test_the_frozen_stages_are_counted_in_the_reason(facts, says):
    (choice,) = (
        c for c in choose(facts, build({"tune.method": "auto"})) if c.field == "tune.freeze_stages"
    )
    assert choice.reason == says and choice.value == int(says[0])


def test_several_labels_of_an_example_count_each():
    assert of(RESNET, examples=60, labels=600)["tune.method"] == "lpft"
    assert of(RESNET, examples=60, labels=9)["tune.method"] == "head"


def test_optimizer_and_rate_follow_the_network_and_the_batch():
    assert of(RESNET)["optimizer.name"] == "sgd" and of(RESNET)["optimizer.weight_decay"] == 0.0
    assert of(SQUEEZENET)["optimizer.name"] == of(VIT)["optimizer.name"] == "adamw"
    for facts, power in ((RESNET, 1.0), (SQUEEZENET, 0.5)):
        one, two = (of(facts, {"train.batch_size": size})["optimizer.lr"] for size in (32, 128))
        assert two == pytest.approx(one * 4**power, rel=0.06)  # rates have two digits
    part = of(RESNET, examples=1000)
    assert part["optimizer.lr"] == pytest.approx(
        auto.RATES["sgd"]["network"] * part["train.batch_size"] / auto.REFERENCE_BATCH, rel=0.06
    )
    assert part["optimizer.schedule"] == "cosine" and part["optimizer.warmup"] == "10%"
    assert part["tune.groups"] == (f"head.lr={auto.NEW_HEAD}",)
    known = of(RESNET, examples=1000, new_head=False)
    assert "tune.groups" not in known
    assert known["optimizer.lr"] == pytest.approx(auto.KNOWN_HEAD * part["optimizer.lr"], rel=0.06)
    assert of(RESNET, examples=8, new_head=False) == of(RESNET, examples=8)  # the head alone
    assert "tune.groups" not in of(RESNET, examples=8)  # a head alone has its own rate
    fresh = of(RESNET, examples=8, fresh_stages=("layer4",))
    scratch = of(RESNET, examples=8, pretrained=False)
    assert fresh["optimizer.lr"] == scratch["optimizer.lr"] and "tune.groups" not in fresh


def test_a_heads_rate_is_one_that_a_relu_behind_it_survives():
    # Of SqueezeNet's on ants and bees, 5e-3 in batches of 16 left one of three dead, and 3e-3 none.
    for count in (4, 8):
        assert of(SQUEEZENET, examples=count)["optimizer.lr"] <= 3e-3


def test_the_rate_does_not_grow_beyond_the_largest_batch_and_the_examples():
    def rate(size, count):
        return of(RESNET, {"train.batch_size": size}, examples=count)["optimizer.lr"]

    assert rate(128, 5000) < rate(256, 5000) == rate(1024, 5000) == rate(4096, 5000)
    assert rate(128, 180) < rate(256, 180) == rate(1024, 180)
    assert rate(1024, 180) == pytest.approx(rate(32, 180) * 180 / 32, rel=0.06)
    changed = dataclasses.replace(RESNET, examples=180, labels=180)
    choices = choose(changed, build({"tune.method": "auto", "train.batch_size": 1024}))
    (reason,) = (c.reason for c in choices if c.field == "optimizer.lr")
    assert reason.endswith("by the batch of 1024, counted as 180, over 32")


def test_the_input_is_the_weights_own_but_for_small_pictures():
    assert not {"data.image_size", "data.resize"} & of(RESNET).keys()
    small = of(RESNET, picture=32, takes_small=True)
    assert (small["data.image_size"], small["data.resize"]) == (128, 160)
    assert small["data.augment"] == ("random_crop", "flip")
    assert "data.image_size" not in of(RESNET, picture=32, takes_small=False)
    own = of(RESNET, picture=8, takes_small=True, input_size=32)
    assert "data.image_size" not in own and own["data.augment"] == ("pad_crop:4", "flip")
    given = of(RESNET, {"data.image_size": 64}, picture=32, takes_small=True, input_size=64)
    assert "data.resize" not in given and given["data.augment"] == ("pad_crop:8", "flip")


@pytest.mark.parametrize(
    ("names", "flips"),
    [
        (("cat", "dog"), True),
        (tuple("0123456789"), False),
        (tuple(map(str, range(1, 103))), True),
        (("0", "1", "10"), True),
        (("+", "-"), True),
        (("a", "B", "ü"), False),
        (("a", "cat"), True),
        (("left_hand", "no hand"), False),
        (("turn Right", "stop"), False),
        (("leftover", "bright", "copyright"), True),
    ],
)
def test_flips_are_for_classes_that_have_no_side(names, flips):
    assert ("flip" in of(RESNET, class_names=names)["data.augment"]) == flips


def test_numbers_that_are_no_names_say_nothing_of_flips():
    assert "flip" in of(RESNET, class_names=tuple("0123"), numbered=True)["data.augment"]


def test_more_examples_never_get_fewer_steps_smaller_batches_or_fewer_trained_stages():
    counts = [2, 3, 9, 10, 50, 199, 200, 399, 400, 999, 1000, 1001, 20_000, 10**6, 10**7]
    order = {"head": 0, "partial": 1, "lora": 1, "lpft": 2, "full": 2}
    for facts, pretrained in itertools.product((RESNET, VIT), (True, False)):
        found = [of(facts, examples=count, pretrained=pretrained) for count in counts]
        for field in ("train.steps", "train.batch_size"):
            values = [chosen[field] for chosen in found]
            assert values == sorted(values) and values[0] < values[-1]
        trained = [order[chosen["tune.method"]] for chosen in found]
        assert trained == sorted(trained)
        for count, chosen in zip(counts, found, strict=True):
            assert ("train.mixup" in chosen) == (count >= 20_000)
    # A person with 100 pictures does not get 500 steps of 512.
    few = of(RESNET, examples=100)
    assert few["train.steps"] * few["train.batch_size"] <= 10_000
    assert of(RESNET, examples=10**6)["train.steps"] == 16_000


def test_from_scratch_takes_more_steps_and_short_epochs_are_not_each_evaluated():
    one, two = of(RESNET, examples=1000), of(RESNET, examples=1000, pretrained=False)
    assert two["train.steps"] == pytest.approx(auto.FROM_SCRATCH * one["train.steps"], rel=0.05)
    assert of(RESNET, examples=50)["eval.every"] == "10%"
    assert of(RESNET, examples=50)["checkpoint.every"] == "10%"
    assert "eval.every" not in of(RESNET, examples=10**6)


def test_batches_can_be_shared_by_the_devices():
    assert of(RESNET, multiple=3)["train.batch_size"] == 18
    assert of(RESNET, examples=10**6, multiple=256)["train.batch_size"] == 256


# What is set is not chosen, and the rest takes it into account.


@pytest.mark.parametrize(
    "field",
    [
        name
        for name in AUTO_FIELDS
        if name
        not in (
            "tune.freeze_stages",
            "tune.train_stages",
            "tune.unfreeze_every",
            "tune.head_first",
            "tune.rules",
            "tune.targets",
            "tune.alpha",
            "tune.rank",
            "tune.layer_decay",
        )
    ],
)
def test_a_field_that_is_kept_is_never_chosen(field):
    for facts, count in itertools.product((RESNET, SQUEEZENET, VIT), (8, 60, 600, 30_000)):
        chosen = of(facts, {"tune.keep": field}, examples=count, picture=32, takes_small=True)
        assert field not in chosen and "tune.method" in chosen


@pytest.mark.parametrize("field", [name for name in FIELDS_OF if name != "keep"])
def test_a_field_of_a_method_asks_for_that_method(field):
    for facts, count in itertools.product((RESNET, VIT), (8, 600, 30_000)):
        chosen = of(facts, {"tune.keep": f"tune.{field}"}, examples=count)
        assert chosen["tune.method"] in FIELDS_OF[field] and f"tune.{field}" not in chosen


def test_the_rules_own_method_is_preferred_among_those_that_read_a_field():
    assert of(RESNET, {"tune.freeze_stages": 2}, examples=600)["tune.method"] == "lpft"
    assert of(RESNET, {"tune.freeze_stages": 2}, examples=60)["tune.method"] == "partial"
    assert of(RESNET, {"tune.freeze_stages": 2}, examples=8)["tune.method"] == "partial"
    assert of(VIT, {"tune.alpha": 8}, examples=8)["tune.method"] == "lora"
    assert of(VIT, {"tune.targets": "block0.*"}, examples=10**6)["tune.method"] == "lora"


@pytest.mark.parametrize(
    ("facts", "regularizers", "count", "method"),
    [
        (RESNET, "l2sp:0.1", 8, "partial"),
        (RESNET, "delta:0.1", 8, "partial"),
        (RESNET, "bss:0.1", 8, "partial"),
        (RESNET, "init:0.1", 8, "head"),
        (RESNET, "l2sp:0.1:0.01", 600, "lpft"),
        (VIT, "l2sp:0.1", 8, "partial"),
        (VIT, " l2sp :0.1", 60, "partial"),
        (VIT, "l2sp:0.1", 600, "full"),
        (VIT, "delta:0.1", 8, "lora"),
        (VIT, "bss:0.1", 8, "lora"),
        (VIT, "delta:0.1,l2sp:0.1", 60, "partial"),
    ],
)
def test_regularizers_get_something_to_act_on(facts, regularizers, count, method):
    fields = {"tune.regularizers": regularizers}
    chosen = of(facts, fields, examples=count)
    assert chosen["tune.method"] == method
    for name in auto.NOT_REGULARIZED:
        assert method not in auto.NOT_REGULARIZED[name] or name not in regularizers
    config = build({"tune.method": "auto", "tune.rank": 4, "tune.regularizers": "l2sp:0.1"})
    with pytest.raises(
        InputError, match=r"rank and tune\.regularizers=l2sp are given, and no method"
    ):
        methods_for(config)


def test_trained_adapters_choose_their_own_method():
    for facts, count in itertools.product((RESNET, VIT), (8, 600, 30_000)):
        for method in ("lora", "ia3"):
            chosen = of(facts, examples=count, adapters=method)
            assert chosen["tune.method"] == method and "tune.rank" not in chosen
    config = build({"tune.method": "auto", "tune.freeze_stages": 2})
    with pytest.raises(
        InputError, match=r"freeze_stages and model\.adapters are given, and no method"
    ):
        methods_for(config, "lora")
    changed = dataclasses.replace(RESNET, adapters="lora")
    first, *_ = choose(changed, build({"tune.method": "auto", "tune.alpha": 4}))
    assert first.reason == "it goes with tune.alpha and model.adapters, which are set"


def test_fields_of_different_methods_are_refused():
    config = build({"tune.method": "auto", "tune.freeze_stages": 2, "tune.rank": 4})
    with pytest.raises(InputError, match=r"freeze_stages and tune\.rank are given, and no method"):
        choose(RESNET, config)
    with pytest.raises(InputError, match="no method goes with them all"):
        methods_for(config)
    assert methods_for(build({"tune.method": "auto"})) == METHODS


def test_epochs_that_are_set_are_not_overruled_by_steps():
    assert "train.steps" not in of(RESNET, {"train.epochs": 3})
    assert "train.steps" not in of(RESNET, {"train.epochs": 3, "train.steps": 7})
    assert "train.steps" not in of(RESNET, {"train.steps": 7})
    # Checkpoints are written as the length that is set asks for: 19 steps an epoch.
    assert "eval.every" not in of(RESNET, {"train.epochs": 3})
    assert of(RESNET, {"train.epochs": 30})["eval.every"] == "10%"


def test_smaller_batches_than_the_rules_see_as_many_examples():
    own = of(RESNET)
    assert own["train.batch_size"] == 16
    half, double = (of(RESNET, {"train.batch_size": size}) for size in (8, 32))
    assert half["train.steps"] == pytest.approx(2 * own["train.steps"], rel=0.02)
    assert double["train.steps"] == own["train.steps"]


def test_an_optimizer_that_is_set_has_its_own_rate():
    sgd = of(RESNET)["optimizer.lr"]
    adamw = of(RESNET, {"optimizer.name": "adamw"})
    assert adamw["optimizer.lr"] < sgd and adamw["optimizer.weight_decay"] == auto.DECAY
    assert of(RESNET, {"optimizer.name": "adam"})["optimizer.lr"] == adamw["optimizer.lr"]
    assert of(RESNET, {"optimizer.name": "adam"})["optimizer.weight_decay"] == 0.0
    free = of(RESNET, {"optimizer.name": "schedule_free_adamw"})
    assert free["optimizer.schedule"] == "constant"
    found = of(RESNET, {"optimizer.name": "prodigy"}, examples=600)
    assert found["optimizer.lr"] == 1.0 and found["tune.method"] == "full"  # it takes no phases
    for name in auto.LIKE_SGD | auto.LIKE_ADAMW | auto.FIND_THEIR_RATE:
        maker(name, "optimizer.name")  # raises where there is none
    for facts, count in itertools.product((RESNET, VIT), (8, 60, 600)):
        one, two = (of(facts, {"optimizer.name": n}, examples=count) for n in ("lion", "adamw"))
        assert 3 <= two["optimizer.lr"] / one["optimizer.lr"] <= 10
        assert 3 <= one["optimizer.weight_decay"] / two["optimizer.weight_decay"] <= 10


def test_an_optimizer_that_auto_knows_no_rate_for_must_have_one():
    for name in ("adafactor", "lamb"):
        with pytest.raises(
            InputError, match=f"knows no learning rate for {name}: set optimizer.lr"
        ):
            of(RESNET, {"optimizer.name": name})
        chosen = of(RESNET, {"optimizer.name": name, "optimizer.lr": 0.01})
        assert not {"optimizer.lr", "optimizer.weight_decay", "tune.groups"} & chosen.keys()
    assert "optimizer.lr" in of(RESNET, {"optimizer.options": "momentum=0.8"})


def test_options_and_milestones_choose_what_they_belong_to():
    assert of(VIT, {"optimizer.options": "momentum=0.8"})["optimizer.name"] == "sgd"
    for facts in (VIT, RESNET):
        chosen = of(facts, {"optimizer.options": "b2=0.95, eps=1e-6"}, examples=600)
        assert chosen["optimizer.name"] == "adamw"
        assert (
            chosen["optimizer.lr"]
            == of(facts, {"optimizer.name": "adamw"}, examples=600)["optimizer.lr"]
        )
        plain = of(facts, examples=600)
        assert of(facts, {"optimizer.options": "nesterov=true"}, examples=600) == plain
    kept = of(VIT, {"optimizer.options": "b1=0.8", "optimizer.name": "lion"})
    assert "optimizer.name" not in kept
    assert of(VIT, {"optimizer.gamma": 0.5})["optimizer.schedule"] == "step"
    lr = of(RESNET, {"optimizer.lr": 0.3}, examples=1000)
    assert "optimizer.lr" not in lr and lr["tune.groups"] == (f"head.lr={auto.NEW_HEAD}",)


def test_the_head_has_a_rate_of_its_own_where_it_is_trained():
    only, both = (of(RESNET, {"tune.train_stages": text}) for text in ("layer1", "layer1,head"))
    assert only["tune.method"] == both["tune.method"] == "surgical"
    assert "tune.groups" not in only and both["tune.groups"] == (f"head.lr={auto.NEW_HEAD}",)


def test_the_options_of_the_rules_optimizers_are_theirs():
    for name, options in auto.OPTIONS.items():
        accepted = inspect.signature(maker(name, "optimizer.name")).parameters
        assert options == set(accepted) - OWN_ARGUMENTS


def test_every_choice_has_a_reason_and_its_fields_type():
    for facts, count in itertools.product((RESNET, SQUEEZENET, VIT), (2, 60, 600, 30_000)):
        config = build({"tune.method": "auto"})
        changed = dataclasses.replace(facts, examples=count, labels=count)
        choices = choose(changed, config)
        fields = [choice.field for choice in choices]
        assert len(set(fields)) == len(fields)
        assert set(fields) <= {"tune.method", *AUTO_FIELDS}
        assert all(choice.reason and "\n" not in choice.reason for choice in choices)
        made = decided(config, choices)
        assert made.tune.method in METHODS and made.tune.keep == ()
        for choice in choices:
            section, name = choice.field.split(".")
            value = getattr(getattr(made, section), name)
            assert value == choice.value and type(value) is type(choice.value)


def test_the_table_has_a_line_for_each_choice_and_names_what_was_kept():
    config = build({"tune.method": "auto", "optimizer.lr": 0.3})
    choices = choose(RESNET, config)
    first, *lines, last = choices_table(choices, config).splitlines()
    assert first == "tune.method=auto chose these; each can be set instead:"
    assert len(lines) == len(choices)
    for line, choice in zip(lines, choices, strict=True):
        assert line.startswith(choice.field) and line.endswith(choice.reason)
    assert last == "left as they are set: optimizer.lr"


def test_the_table_of_the_readme_is_what_is_printed():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    config = build(load(Path(__file__).parents[2] / "configs" / "auto.py"), {"data.root": "DIR"})
    facts = dataclasses.replace(RESNET, examples=220, labels=220)
    assert f"```\n{choices_table(choose(facts, config), config)}\n```" in readme


def test_the_rule_imports_no_jax():
    code = "import sys, tlx.tuning.auto, tlx.workdir; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
