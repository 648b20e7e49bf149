import numpy as np

from tlx.data.order import indices


def test_each_epoch_is_a_permutation_and_the_remainder_is_carried_over():
    found = indices(seed=3, start=0, length=30, count=10)
    for epoch in range(3):
        assert sorted(found[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert not np.array_equal(found[:10], found[10:20])
    batches = np.concatenate(
        [indices(seed=3, start=4 * step, length=4, count=10) for step in range(7)]
    )
    np.testing.assert_array_equal(batches, found[:28])


def test_the_order_is_fixed_for_all_time():
    # A literal, because a changed order would break every resumed run without another symptom.
    assert indices(seed=0, start=0, length=8, count=8).tolist() == [0, 5, 1, 4, 2, 7, 6, 3]


def test_a_batch_may_be_larger_than_the_data():
    found = indices(seed=1, start=0, length=25, count=10)
    assert np.bincount(found, minlength=10).min() == 2


def test_seeds_differ():
    assert not np.array_equal(indices(0, 0, 50, 50), indices(1, 0, 50, 50))
