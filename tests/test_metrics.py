"""Figures with intervals, as rows."""

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialoom.evals.metrics import Row, bootstrap, over_seeds, rate


def rows(*values):
    return [Row("flipflop", "pbt", "overall", value, value - 0.1, value + 0.1, 50, seed)
            for seed, value in enumerate(values)]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40))
def test_an_interval_lies_within_the_values_and_around_their_mean_when_wide_enough(values):
    low, high = bootstrap(values, draws=200)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_the_interval_holds_the_truth_about_95_times_in_100():
    rng = random.Random(3)
    held = 0
    for _ in range(200):
        low, high = bootstrap([float(rng.random() < 0.4) for _ in range(80)], draws=400)
        held += low <= 0.4 <= high
    assert 180 <= held <= 198


def test_an_interval_is_as_wide_as_the_normal_one_on_a_large_sample():
    values = [1.0] * 300 + [0.0] * 700
    low, high = bootstrap(values)
    assert (low, high) == pytest.approx((0.3 - 1.96 * 0.01449, 0.3 + 1.96 * 0.01449), abs=0.003)
    assert bootstrap(values) == bootstrap(values) != bootstrap(values, seed=1)


def test_equal_values_have_no_width_and_no_values_no_interval():
    assert bootstrap([1.0] * 9) == (1.0, 1.0)
    assert all(math.isnan(end) for end in bootstrap([]))


def test_a_rate_is_a_mean_with_its_items():
    row = rate("recall", "base", "accuracy", [1.0, 0.0, 1.0, 1.0], seed=7)
    assert (row.value, row.n, row.seed) == (0.75, 4, 7) and row.low <= 0.75 <= row.high


def test_a_rate_of_nothing_is_null_in_json():
    row = rate("misinformation", "base", "adopted", [], seed=1)
    assert json.loads(json.dumps(row.to_json(), allow_nan=False)) == {
        "eval": "misinformation", "subject": "base", "metric": "adopted", "value": None, "low": None, "high": None,
        "n": 0, "seed": 1}


def test_three_seeds_by_hand():
    (row,) = over_seeds(rows(0.5, 0.6, 0.7))  # standard deviation 0.1, error 0.1 / sqrt 3, t(2) = 4.303
    assert (row.value, row.low, row.high) == pytest.approx((0.6, 0.6 - 0.24843, 0.6 + 0.24843), abs=1e-5)
    assert (row.n, row.seed) == (3, None)


@pytest.mark.parametrize(("seeds", "t"), [(2, 12.71), (10, 2.262), (11, 2.228), (16, 2.131), (31, 2.042), (121, 1.980)])
def test_the_width_over_seeds_is_students(seeds, t):
    values = [0.4, 0.6] * (seeds // 2) + [0.5] * (seeds % 2)
    (row,) = over_seeds(rows(*values))
    error = math.sqrt(sum((value - 0.5) ** 2 for value in values) / (seeds - 1) / seeds)
    assert (row.high - row.value) / error == pytest.approx(t, abs=0.005)


def test_a_wide_interval_over_few_seeds_may_leave_the_unit_range():
    (row,) = over_seeds(rows(0.9, 1.0))
    assert row.high > 1


def test_one_seed_keeps_its_own_interval():
    (row,) = over_seeds(rows(0.5))
    assert (row.value, row.low, row.high, row.n, row.seed) == (0.5, 0.4, 0.6, 1, None)


def test_seeds_without_a_figure_are_left_out():
    nothing = Row("flipflop", "pbt", "overall", math.nan, math.nan, math.nan, 0, 8)
    reread = Row(**nothing.to_json())  # as results.json gives it back: null
    (row,) = over_seeds([nothing, reread, *rows(0.5)])
    assert (row.value, row.low, row.high, row.n) == (0.5, 0.4, 0.6, 1)
    (none,) = over_seeds([reread])
    assert none.n == 0 and none.to_json()["value"] is None


def test_figures_are_kept_apart_and_summaries_are_not_summed_again():
    other = Row("recall", "pbt", "accuracy", 0.9, 0.8, 1.0, 50, 1)
    found = over_seeds([*rows(0.5, 0.6), other])
    assert [(row.eval, row.n) for row in found] == [("flipflop", 2), ("recall", 1)]
    assert over_seeds(found) == []
