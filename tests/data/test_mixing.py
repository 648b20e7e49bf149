import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tlx.config import build
from tlx.data.mixing import Mixing, cutmix_share, make_mixing, mix, mixup_share
from tlx.errors import InputError
from tlx.tasks import LossOptions, classification

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((6, 4, 8, 3)).astype(np.float32)
TARGETS = np.array([0, 3, 1, 2, 2, 0], np.int32)
BATCH = {
    "targets": TARGETS,
    "weight": np.ones(6, np.float32),
    "index": np.arange(6, dtype=np.int32),
}
ONE_HOT = np.eye(4, dtype=np.float32)[TARGETS]


def drawn(mixing, seed, images=IMAGES):
    x, batch = mixing(jax.random.key(seed), jnp.asarray(images), BATCH)
    return np.asarray(x), np.asarray(batch["targets"])


def shares(function, alpha, count=4000, height=8, width=12):
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.vmap(lambda key: function(key, alpha, height, width))(keys))


def test_off_changes_nothing():
    x, batch = Mixing()(jax.random.key(0), IMAGES, BATCH)
    assert x is IMAGES and batch is BATCH


@pytest.mark.parametrize("seed", range(3))
def test_mixup_mixes_each_example_with_its_partner_in_the_reversed_batch(seed):
    x, targets = drawn(Mixing(mixup=0.8, num_classes=4), seed)
    share = (x[0] - IMAGES[5]).sum() / (IMAGES[0] - IMAGES[5]).sum()
    assert 0 < share < 1
    np.testing.assert_allclose(x, share * IMAGES + (1 - share) * IMAGES[::-1], atol=1e-5)
    np.testing.assert_allclose(targets, share * ONE_HOT + (1 - share) * ONE_HOT[::-1], atol=1e-5)


def test_cutmix_pastes_a_box_and_gives_the_targets_its_area():
    areas = set()
    for seed in range(20):
        x, targets = drawn(Mixing(cutmix=1.0, num_classes=4), seed)
        pasted = (x == IMAGES[::-1]).all((0, 3))
        kept = (x == IMAGES).all((0, 3))
        assert np.all(pasted ^ kept)
        rows, columns = np.flatnonzero(pasted.any(1)), np.flatnonzero(pasted.any(0))
        if pasted.any():
            box = np.ix_(range(rows[0], rows[-1] + 1), range(columns[0], columns[-1] + 1))
            assert pasted[box].all() and pasted.sum() == pasted[box].size
        share = kept.mean()
        areas.add(share)
        np.testing.assert_allclose(
            targets, share * ONE_HOT + (1 - share) * ONE_HOT[::-1], rtol=1e-6
        )
    assert len(areas) > 3


def test_a_box_has_the_pictures_proportions_and_ends_at_its_border():
    for share in shares(cutmix_share, 1.0, count=300):
        box = share == 0
        assert set(np.unique(share)) <= {0.0, 1.0}
        rows, columns = box.any(1), box.any(0)
        if rows[[0, -1]].any() or columns[[0, -1]].any() or not box.any():
            continue  # cut at the border
        height, width = rows.sum(), columns.sum()
        # Both sides are even numbers below ratio * side.
        assert height % 2 == width % 2 == 0
        assert height / 8 < (width + 2) / 12 and width / 12 < (height + 2) / 8


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_drawn_from_the_beta_distribution(alpha):
    found = shares(mixup_share, alpha)
    assert (found == found[:, :1, :1]).all()
    # The standard error of the mean is below 0.008, that of the variance below 0.002.
    assert found[:, 0, 0].mean() == pytest.approx(0.5, abs=0.03)
    assert found[:, 0, 0].var() == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.008)


def test_both_are_drawn_about_equally_often():
    mixing = Mixing(mixup=1.0, cutmix=1.0, num_classes=4)
    ramp = np.broadcast_to(np.array([0.0, 1.0]).repeat(3)[:, None, None, None], (6, 4, 8, 3))
    boxes = 0
    for seed in range(200):
        x, _ = drawn(mixing, seed, ramp)
        boxes += bool(np.isin(x, (0.0, 1.0)).all())
    assert 70 < boxes < 130  # four standard deviations


def test_targets_that_are_distributions_are_mixed_as_they_are():
    rows = RNG.dirichlet(np.ones(4), 6).astype(np.float32)
    share = jnp.full((4, 8), 0.25)
    _, batch = mix(jnp.asarray(IMAGES), {**BATCH, "targets": jnp.asarray(rows)}, share, 4)
    np.testing.assert_allclose(batch["targets"], 0.25 * rows + 0.75 * rows[::-1], rtol=1e-6)
    np.testing.assert_array_equal(batch["index"], np.arange(6))


@pytest.mark.parametrize(
    "options",
    [
        LossOptions(),
        LossOptions(label_smoothing=0.1),
        LossOptions(label_smoothing=0.1, class_weights=(0.5, 1.0, 3.0, 2.0)),
        LossOptions(name="focal", gamma=2.0),
        LossOptions(name="bce", label_smoothing=0.1),
    ],
)
def test_the_loss_is_the_two_losses_in_their_shares(options):
    logits = jnp.asarray(RNG.standard_normal((6, 4)).astype(np.float32))
    share = jnp.full((4, 8), 0.3)
    _, mixed = mix(jnp.asarray(IMAGES), BATCH, share, 4)
    one, two = (
        float(classification.loss(logits, {**BATCH, "targets": targets}, options))
        for targets in (TARGETS, TARGETS[::-1])
    )
    found = float(classification.loss(logits, mixed, options))
    assert found == pytest.approx(0.3 * one + 0.7 * two, rel=1e-6)


@pytest.mark.parity
def test_smoothed_targets_are_timms():
    import torch

    from tests.torchvision_import import import_torchvision

    import_torchvision()  # which timm imports
    from timm.data.mixup import mixup_target

    from tlx.tasks.losses import smoothed

    expected = mixup_target(torch.from_numpy(TARGETS).long(), 4, 0.3, 0.1)
    _, mixed = mix(jnp.asarray(IMAGES), BATCH, jnp.full((4, 8), 0.3), 4)
    np.testing.assert_allclose(smoothed(mixed["targets"], 0.1), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("field", ["mixup", "cutmix"])
def test_one_example_has_nothing_to_be_mixed_with(field):
    train = {f"train.{field}": 0.2, "train.batch_size": 1}
    with pytest.raises(InputError, match=rf"train\.{field} is 0\.2, but train\.batch_size is 1"):
        make_mixing(build(train).train, 4)
    assert make_mixing(build({"train.batch_size": 1}).train, 4) == Mixing(num_classes=4)
    pair = build(train | {"train.batch_size": 2, "train.accumulate": 2}).train
    assert make_mixing(pair, 4) == Mixing(**{field: 0.2}, num_classes=4)
