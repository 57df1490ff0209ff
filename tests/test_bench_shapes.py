"""The trees the training bench measures on, and that all its ways compute the same gradients of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench import dpo, shapes
from dialoom.train.pack import bins, pack, unique_tokens
from dialoom.train.rows import pair_rows
from tests.tiny import tiny_module

VOCABULARY = 400


@pytest.mark.parametrize(("name", "pairs", "flat", "unique"), [
    ("aloe", 10, 17_200, 2_000), ("binary-2x6", 7, 6_880, 1_460), ("pbt-depth6", 63, 63_720, 7_760),
    ("pbt-own", 11, 8_960, 1_460)])
def test_the_trees_have_the_sizes_one_computes_by_hand(name: str, pairs: int, flat: int, unique: int):
    shape = shapes.SHAPES[name](VOCABULARY)
    assert (len(shape.pairs), shape.flat_tokens, shape.unique_tokens) == (pairs, flat, unique)
    assert unique_tokens(dpo.token_paths(shape)) == unique
    assert shape == shapes.SHAPES[name](VOCABULARY) != shapes.SHAPES[name](VOCABULARY, 1)


def test_a_step_of_ditto_has_its_21_pairs_over_seven_prompts_and_some_sequences_twice():
    shape = shapes.ditto_step(VOCABULARY)
    prompts = {prompt for prompt, *_ in shape.pairs}
    assert len(shape.pairs) == 21 and len(prompts) <= 7
    assert all(prompt + chosen != prompt + rejected for prompt, chosen, rejected in shape.pairs)
    assert 21 < len(set(shape.sequences)) < 42
    over_samples, of_samples = ({(prompt, chosen) for prompt, chosen, _ in part}
                                for part in (shape.pairs[:19], shape.pairs[19:]))
    assert len(over_samples) <= 7 and not over_samples & of_samples


def test_text_and_tokens_of_a_tree_are_the_same_for_us_and_for_a_tokenizer():
    shape = shapes.tree("small", "", VOCABULARY, (2, 2))
    rows = pair_rows(shapes.TokenModel(tiny_module(context=512), "tiny"), shape.as_pairs())
    for row, (prompt, *replies) in zip(rows, shape.pairs, strict=True):
        for path, reply in zip(row.paths, replies, strict=True):
            assert tuple(path.ids.tolist()) == prompt + reply and path.spans == ((len(prompt), len(prompt + reply)),)
            said = shapes.word_tokenizer(VOCABULARY)(shapes.as_text(prompt + reply))["input_ids"]
            assert tuple(said) == prompt + reply and reply[-1] == shapes.EOS


def test_every_way_the_bench_measures_leaves_the_same_gradients(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dpo, "stepped", lambda module, gradients: gradients)
    monkeypatch.setattr(dpo, "frozen", lambda module, shape: torch.zeros(len(shape.pairs), 2) - 350)
    shape = shapes.tree("small", "", VOCABULARY, (2, 2))
    found = {}
    for name in ("flat-best", "flat-padded", "dense-mask"):
        module = tiny_module(context=512)
        gradients: Any = dpo.METHODS[name](module, shape)
        gradients()
        found[name] = {key: parameter.grad for key, parameter in module.named_parameters()}
    for name, other in found.items():
        for key, gradient in found["flat-best"].items():
            assert (other[key] - gradient).norm() <= 1e-4 * gradient.norm(), (name, key)


def test_an_epoch_of_ours_and_of_the_others_takes_time_and_moves_the_weights():
    shape = shapes.tree("ditto-step", "", VOCABULARY, (2,))  # the name that has the reference scored anew
    for name in ("ours", "flat-budget", "flat-best", "release-pattern"):
        module = tiny_module(context=512)
        before = module.lm_head.weight.detach().clone()
        epoch: Callable[[], float] = dpo.METHODS[name](module, shape)
        assert 0 < epoch() < 10
        assert not torch.equal(module.lm_head.weight, before), name


def test_the_limit_counts_shared_tokens_before_and_after_the_budget_cuts_the_tree():
    shape = shapes.pbt_depth6(VOCABULARY)
    found = dpo.limits(tiny_module(), shape, 1e9, 1.0)
    assert found["limit"] == pytest.approx(8.21, abs=0.01)
    paths = dpo.token_paths(shape)
    pairs = [paths[at:at + 2] for at in range(0, len(paths), 2)]
    rows = bins(pairs, dpo.settings(shape).token_budget)
    assert len(rows) == 2 and shape.unique_tokens < found["unique_after_split"] < 1.1 * shape.unique_tokens
    assert found["limit_after_split"] == pytest.approx(63_720 / found["unique_after_split"])
    assert sum(len(pack([path for at in row for path in pairs[at]]).ids) for row in rows) == found["unique_after_split"]


def test_the_rows_against_trl_are_left_out_aloud_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    monkeypatch.setattr(dpo, "with_site", lambda: False)
    monkeypatch.setattr(dpo, "rows_of", lambda module, model, shape, others, speed: iter([{"others": list(others)}]))
    monkeypatch.setattr(dpo, "matmul_speed", lambda module: 1.0)
    monkeypatch.setattr(dpo, "load_module", lambda name: tiny_module())
    found = list(dpo.rows(quick=False, log=said.append))
    assert "left out" in said[0] and len(found) == len(shapes.MODELS) * len(dpo.AGAINST)
    assert all(row["others"] and not any("trl" in name for name in row["others"]) for row in found)
