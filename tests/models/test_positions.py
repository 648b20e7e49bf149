import numpy as np
import pytest

from tlx.models.positions import resize_positions


def drawn(side, prefix, width=6):
    rng = np.random.default_rng(side)
    return rng.standard_normal((1, prefix + side * side, width)).astype(np.float32)


def test_the_same_grid_is_unchanged():
    positions = drawn(7, 1)
    np.testing.assert_allclose(resize_positions(positions, (7, 7), 1), positions, atol=1e-6)


@pytest.mark.parametrize("grid", [(9, 9), (4, 4), (3, 8)])
def test_prefix_stays_and_a_constant_stays_one(grid):
    positions = drawn(7, 2)
    positions[:, 2:] = 0.25
    resized = resize_positions(positions, grid, 2)
    assert resized.shape == (1, 2 + grid[0] * grid[1], 6)
    np.testing.assert_array_equal(resized[:, :2], positions[:, :2])
    np.testing.assert_allclose(resized[:, 2:], 0.25, rtol=1e-6)


def test_rows_stay_rows():
    positions = np.repeat(np.arange(5.0, dtype=np.float32), 5).reshape(1, 25, 1)
    grown = resize_positions(positions, (10, 10), 0).reshape(10, 10)
    assert (np.ptp(grown, axis=1) < 1e-6).all()
    assert (np.diff(grown[:, 0]) > 0).all()


@pytest.mark.parametrize("positions", [np.zeros((1, 8, 4)), np.zeros((9, 4)), np.zeros((1, 1, 4))])
def test_what_is_no_square_grid_is_left_to_the_caller(positions):
    assert resize_positions(positions, (4, 4), 1) is None


@pytest.mark.parity
@pytest.mark.parametrize(
    ("side", "prefix", "grid"),
    [(14, 1, (24, 24)), (14, 1, (7, 7)), (37, 0, (16, 16)), (7, 1, (12, 5)), (14, 5, (15, 13))],
)
def test_resized_positions_equal_timms(side, prefix, grid):
    import torch

    from tests.torchvision_import import import_torchvision

    import_torchvision()
    from timm.layers import resample_abs_pos_embed

    positions = drawn(side, prefix)
    expected = resample_abs_pos_embed(
        torch.from_numpy(positions), new_size=list(grid), num_prefix_tokens=prefix
    ).numpy()
    resized = resize_positions(positions, grid, prefix)
    assert resized.dtype == np.float32
    assert np.abs(resized - expected).max() <= 1e-5 * np.abs(expected).max()
