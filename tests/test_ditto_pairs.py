"""DITTO's pairs: counts by the measured table, the ranking, what every setting changes."""

import random
from collections import Counter

import pytest

from dialoom.errors import TrainingError
from dialoom.recipes.ditto_config import DittoConfig, DPOStage
from dialoom.recipes.ditto_pairs import (
    KINDS,
    SequenceStore,
    candidates,
    demo_batches,
    draw_pairs,
    drawn_pairs,
    pair_counts,
    sampling_steps,
)
from dialoom.recipes.ditto_train import arm_settings
from dialoom.train.pack import TokenPath

PACE = {"steps": 40, "resample_every": 10, "pairs_per_demo": 3}  # the release's, which the counts were measured at
RELEASE = DPOStage(stratified=False, drop_identical=False, **PACE)
OURS = DPOStage(**PACE)
PHASES = {1: (0,), 2: (0, 10), 3: (0, 10, 20), 4: (0, 10, 20, 30)}


def sequence(*ids):
    return TokenPath.of([1, *ids], (1, len(ids) + 1))


def store_of(demos, steps, samples=10):
    """Distinct sequences everywhere: ids say demonstration, checkpoint and number."""
    store = SequenceStore([sequence(100 + demo) for demo in range(demos)])
    for step in steps:
        store.add_samples(step, [[sequence(200 + demo, 300 + step, 400 + at) for at in range(samples)]
                                 for demo in range(demos)])
    return store


def one_batch(store, settings, seed=0):
    return draw_pairs(candidates(store, settings), range(len(store.demos)), settings, random.Random(seed))


@pytest.mark.parametrize(("demos", "first", "later"), [
    (7, (15, 0, 0), (15, 4, 2)), (8, (17, 0, 0), (17, 5, 2)), (4, (8, 0, 0), (8, 2, 1)), (3, (6, 0, 0), (6, 2, 1)),
    (2, (4, 0, 0), (4, 1, 1)), (1, (2, 0, 0), (2, 1, 0)),
])
@pytest.mark.parametrize("phase", [1, 2, 3, 4])
def test_a_step_has_as_many_pairs_of_each_kind_as_the_release_measured(demos, first, later, phase):
    batch = Counter(pair.kind for pair in one_batch(store_of(demos, PHASES[phase]), RELEASE))
    assert (batch["expert"], batch["replay"], batch["inter"]) == (first if phase == 1 else later)


def test_the_distinct_sequences_of_a_step_are_as_few_as_measured():
    store = store_of(7, PHASES[3])
    counts = [len({at for pair in one_batch(store, RELEASE, seed) for at in (pair.chosen, pair.rejected)})
              for seed in range(200)]
    assert 28.6 < sum(counts) / 200 < 29.9  # 29.1 to 29.5 in the release


@pytest.mark.parametrize("stratified", [True, False])
def test_the_winner_ranks_above_the_loser_and_the_demonstration_above_all(stratified):
    store = store_of(5, PHASES[4])
    settings = DPOStage(**PACE, stratified=stratified, replay=0.5, inter=0.5)
    for seed in range(20):
        for pair in one_batch(store, settings, seed):
            chosen, rejected = pair.ranks
            if pair.kind == "inter":
                assert chosen > rejected and pair.chosen not in store.demos
            else:
                assert chosen is None and pair.chosen == store.demos[pair.demo]
                assert (rejected == 30) == (pair.kind == "expert"), "replay takes older samples, expert the newest"
            assert pair.rejected not in store.demos


def test_a_batch_draws_no_candidate_twice_and_comes_in_the_order_expert_inter_replay():
    batch = one_batch(store_of(3, PHASES[2], samples=2), DPOStage(pairs_per_demo=8, expert=1, replay=1, inter=1))
    assert len(set(batch)) == len(batch)
    assert [kind for kind in KINDS for pair in batch if pair.kind == kind] == [pair.kind for pair in batch]


def test_every_demonstration_is_used_equally_where_pools_are_stratified():
    store = store_of(7, PHASES[2])
    for seed in range(20):
        used = Counter(pair.demo for pair in one_batch(store, OURS, seed) if pair.kind == "expert")
        assert set(used.values()) <= {2, 3} and len(used) == 7


def test_two_demonstrations_of_one_prompt_both_win():
    store = SequenceStore([sequence(5, 6), sequence(5, 7)])  # one prompt token 5, two outputs
    store.add_samples(0, [[sequence(5, 20 + at) for at in range(4)], [sequence(5, 30 + at) for at in range(4)]])
    winners = {pair.chosen for pair in one_batch(store, OURS)}
    assert winners == set(store.demos)
    assert sum(pair_counts(2, OURS).values()) == 6, "pairs are counted by demonstrations, not by prompts"


def test_changing_a_fraction_or_the_size_changes_the_batch():
    store = store_of(7, PHASES[3])
    base = Counter(pair.kind for pair in one_batch(store, OURS))
    more = Counter(pair.kind for pair in one_batch(store, DPOStage(**PACE, expert=0.2, replay=0.2, inter=0.6)))
    larger = one_batch(store, DPOStage(pairs_per_demo=6))
    assert base != more and more["inter"] == round(0.6 * 21)
    assert len(larger) == sum(pair_counts(7, DPOStage(pairs_per_demo=6)).values()) == 29 + 8 + 4


def test_missing_candidates_make_the_batch_smaller_or_are_filled_with_others():
    store = store_of(7, PHASES[1])
    assert len(one_batch(store, OURS)) == 15
    assert len(one_batch(store, DPOStage(**PACE, refill=True))) == 21


def test_a_kind_that_is_switched_off_is_not_drawn_to_refill():
    store = store_of(7, PHASES[2], samples=1)
    settings = DPOStage(**PACE, refill=True, expert=0.9, replay=0, inter=0.1)
    batch = Counter(pair.kind for pair in one_batch(store, settings))
    assert batch["replay"] == 0


def test_samples_equal_to_the_demonstration_or_to_each_other_make_no_pair():
    store = SequenceStore([sequence(9)])
    store.add_samples(0, [[sequence(9), sequence(8)]])
    store.add_samples(10, [[sequence(8), sequence(7)]])
    pools = candidates(store, DPOStage(**PACE, expert=1, replay=1, inter=1))
    pairs = [(pair.chosen, pair.rejected) for kind in KINDS for pair in pools[kind][0]]
    demo, eight, seven = (store.add(sequence(id)) for id in (9, 8, 7))
    assert sorted(pairs) == sorted([(demo, eight), (demo, seven), (demo, eight), (seven, eight)])
    assert len(store.paths) == 3, "each distinct sequence stands once"


def test_draws_follow_from_the_seed_and_a_resumed_run_draws_the_same():
    store, settings = store_of(7, PHASES[4]), OURS
    whole = list(drawn_pairs(store, settings, 3))
    assert len(whole) == 40
    assert list(drawn_pairs(store, settings, 3, start=20)) == whole[20:]
    assert list(drawn_pairs(store, settings, 4)) != whole
    assert all(rank in (None, 0) for batch in whole[:10] for pair in batch for rank in pair.ranks), "nothing of later"


def test_without_resampling_there_is_one_sampling_before_the_first_step():
    assert list(sampling_steps(OURS)) == [0, 10, 20, 30]
    assert list(sampling_steps(DPOStage(**PACE, resampling=False))) == [0]


@pytest.mark.parametrize(("arm", "first", "later"), [
    ("ditto", 20, 29), ("no_resampling", 20, 29), ("moving_reference", 20, 29), ("no_replay", 24, 28),
    ("no_inter", 22, 28), ("spin", 28, 28)])
def test_every_arm_takes_as_many_pairs_a_step_as_the_page_says(arm, first, later):
    settings = arm_settings(DittoConfig(), arm)
    store = store_of(7, sampling_steps(settings), settings.samples)
    assert [len(batch) for batch in drawn_pairs(store, settings, 1)] == [first] * 10 + [later] * 30


def test_without_resampling_all_pairs_are_expert_ones_over_samples_of_the_start():
    settings = arm_settings(DittoConfig(), "no_resampling")
    store = store_of(7, (0,), settings.samples)
    for batch in drawn_pairs(store, settings, 1):
        assert {(pair.kind, pair.ranks) for pair in batch} == {("expert", (None, 0))} and len(set(batch)) == len(batch)


def test_more_demonstrations_than_a_batch_holds_are_all_used_in_every_epoch():
    batches = demo_batches(10, 8, 6, "seed")
    assert [len(batch) for batch in batches] == [8, 2] * 3
    assert all(sorted(batches[at] + batches[at + 1]) == list(range(10)) for at in (0, 2, 4))


def test_a_store_without_demonstrations_or_with_samples_for_others_is_refused():
    with pytest.raises(TrainingError, match="no demonstration"):
        SequenceStore([])
    with pytest.raises(TrainingError, match="samples for 2 demonstrations, expected 1"):
        SequenceStore([sequence(1)]).add_samples(0, [[], []])
