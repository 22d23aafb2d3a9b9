"""Random orders evaluated one by one. Oracle: the definition of a permutation, and counting."""

from __future__ import annotations

import numpy as np
import pytest

from models.data.permutation import KeyedRandom, Permutation, hashed


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 1000, 4096, 4097])
def test_every_value_comes_once(count: int) -> None:
    for seed in range(3):
        order = Permutation(count, (seed, 0))
        assert sorted(order[position] for position in range(count)) == list(range(count))


def test_orders_of_three_are_equally_likely() -> None:
    orders = [tuple(Permutation(3, (seed,))[position] for position in range(3)) for seed in range(3000)]
    counts = np.array([orders.count(order) for order in set(orders)])
    assert len(counts) == 6
    # chi square of 5 degrees of freedom: below 36 but for one in a million
    assert ((counts - 500) ** 2 / 500).sum() < 36


def test_neighbours_are_not_neighbours_afterwards() -> None:
    count = 10_000
    values = np.array([Permutation(count, (5, 1))[position] for position in range(count)])
    assert abs(np.corrcoef(values, np.arange(count))[0, 1]) < 5 / count**0.5
    assert abs(np.corrcoef(values[1:], values[:-1])[0, 1]) < 5 / count**0.5
    assert (np.abs(np.diff(values)) == 1).mean() < 0.002


def test_a_billion_needs_no_memory() -> None:
    order = Permutation(1_300_000_007, (1, 2, 3))
    values = {order[position] for position in range(0, 1_300_000_007, 13_000_000)}
    assert len(values) == 101
    assert max(values) > 1_000_000_000
    with pytest.raises(IndexError, match="position: expected 0 to 1300000006, got -1"):
        order[-1]


def test_the_order_is_fixed_for_ever() -> None:
    """A resumed run sees what the run it goes on from would have seen, in a later version too."""
    assert [Permutation(10, (0, 0))[position] for position in range(10)] == [0, 5, 3, 7, 6, 1, 9, 8, 4, 2]
    assert Permutation(1_300_000, (7, 3, 0))[123_456] == 257_938
    assert [hashed(0), hashed(1, 2, 3)] == [16294208416658607535, 16914669369030367833]


def test_every_key_has_numbers_of_its_own() -> None:
    random = KeyedRandom()
    first = random.at(1, 2).random(5)
    other = random.at(1, 3).random(5)
    random.at(7).integers(3, dtype=np.int32)  # leaves half a draw behind
    assert np.array_equal(random.at(1, 2).random(5), first)
    assert not np.intersect1d(first, other).size
    values = np.array([random.at(seed, position).random() for seed in range(50) for position in range(200)])
    # chi square of 49 degrees of freedom: below 112 but for one in a million
    counts = np.histogram(values, 50, (0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 112
    assert len({hashed(*key) for key in [(0,), (0, 0), (0, 1), (1, 0), (1,), (-1,)]}) == 6
