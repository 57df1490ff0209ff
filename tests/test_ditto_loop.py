"""DITTO's loop on tiny models: exact losses and gradients, a fixed reference, what ends a text, learning, resuming."""

import math
import random

import pytest
import torch

from dialoom.errors import ConfigError, TrainingError
from dialoom.models.base import Sampling
from dialoom.recipes import ditto_loop as loop
from dialoom.recipes.ditto_config import DPOStage, SFTStage
from dialoom.recipes.ditto_pairs import SequenceStore, candidates, draw_pairs, pair_counts
from dialoom.recipes.ditto_write import reply_path
from dialoom.train.dpo import dpo_loss
from dialoom.train.pack import logprobs_flat, logprobs_packed, score_paths
from tests.tiny import files_in, half_removed, tiny_model

PROMPTS = ("Which river?", "Who is right?", "And the answer?")
OUTPUTS = ("The Oslo river, zzz", "Norway is right, zzz", "The answer is Rome, zzz")
SFT = SFTStage(lr=2e-3, batch=2, max_steps=12, stop_loss=0, loss_on="reply")
DPO = DPOStage(lr=2e-3, steps=6, resample_every=2, samples=4, beta=0.1, pairs_per_demo=3)


def user(text):
    return [{"role": "user", "content": text}]


def fresh(rank=4):
    model = tiny_model()
    with loop.seeded(model.module, 0):
        model.add_lora(rank, 2 * rank, 0.0)
    return model


def demos_of(model, outputs=OUTPUTS):
    return [reply_path(model, user(prompt), output) for prompt, output in zip(PROMPTS, outputs, strict=False)]


class Voices:
    """Samples the tiny model; remembers who was asked when."""

    def __init__(self, model, demos, settings):
        self.model, self.demos, self.settings, self.texts, self.asked = model, demos, settings, {}, []

    def say(self, step):
        self.asked.append(step)
        keys = [[f"{step}/{demo}/{at}" for at in range(self.settings.samples)] for demo in range(len(self.demos))]
        chats = [user(PROMPTS[demo]) for demo, row in enumerate(keys) for _ in row]
        said = self.model.chat(chats, Sampling(1.0, max_new_tokens=12), [key for row in keys for key in row])
        self.texts |= dict(zip((key for row in keys for key in row), said, strict=True))
        return keys

    def path(self, demo, key):
        reply = self.texts[key]
        return reply_path(self.model, user(PROMPTS[demo]), reply.text or "?", ended=reply.finish == "stop")

    def watch(self, step, keys):
        return {}


def tuned(model, out):
    loop.fine_tune(model, demos_of(model), SFT, out=out / "sft", seed=0)
    return loop.adapter_state(model)


def gradients(model):
    found = torch.cat([parameter.grad.flatten() for parameter in loop.adapter_parameters(model).values()])
    for parameter in loop.adapter_parameters(model).values():
        parameter.grad = None
    return found


@pytest.fixture
def batch(tmp_path):
    """A model off its reference, a store and the pairs of one step."""
    model = fresh()
    reference = tuned(model, tmp_path)
    store = SequenceStore(demos_of(model))
    voices = Voices(model, store.demos, DPO)
    for step in (0, 2):
        store.add_samples(step, [[voices.path(demo, key) for key in row]
                                 for demo, row in enumerate(voices.say(step))])
    loop.score_reference(model, store, reference, budget=4096, bf16=False)
    with torch.no_grad():
        torch.manual_seed(0)
        for parameter in loop.adapter_parameters(model).values():
            parameter.add_(0.01 * torch.randn_like(parameter))
    pairs = draw_pairs(candidates(store, DPO), range(3), DPO, random.Random(0))
    return model, store, pairs


def naive(model, store, pairs, settings):
    """Two flat sequences for every pair, as the release computes them."""
    policy = torch.stack([logprobs_flat(model.module, [store.paths[pair.chosen], store.paths[pair.rejected]])
                          for pair in pairs])
    frozen = torch.tensor([[store.reference[pair.chosen], store.reference[pair.rejected]] for pair in pairs])
    return dpo_loss(policy, frozen, settings.beta).mean()


@pytest.mark.parametrize("budget", [4096, 40])
def test_distinct_sequences_once_give_the_loss_and_gradients_of_every_pair_by_itself(batch, budget):
    model, store, pairs = batch
    ids, loss = loop.pair_loss(pairs, store, DPO)
    assert len(ids) < 2 * len(pairs), "the step must hold repeated sequences for this to mean anything"
    value, _ = loop.backward(model, [store.paths[at] for at in ids], loss, budget=budget, logprobs=logprobs_packed,
                             packed=True)
    own = gradients(model)
    expected = naive(model, store, pairs, DPO)
    expected.backward()
    assert value == pytest.approx(expected.item(), abs=1e-5)
    theirs = gradients(model)
    assert float((own - theirs).abs().max()) < 1e-4 * float(theirs.abs().max()) + 1e-7


def test_stored_reference_logprobs_equal_fresh_ones_and_training_leaves_them(tmp_path):
    model = fresh()
    reference = tuned(model, tmp_path)
    demos = demos_of(model)
    store, _ = loop.align(model, demos, DPO, Voices(model, demos, DPO), out=tmp_path / "dpo", seed=0)
    assert any(not torch.equal(now, reference[name]) for name, now in loop.adapter_state(model).items())
    with loop.wearing(model, reference):
        fresh_ones = score_paths(model.module, store.paths, budget=4096)
    assert store.reference == pytest.approx(fresh_ones.tolist(), abs=1e-4)


def test_the_first_step_has_a_loss_of_log_two_and_no_margin(tmp_path):
    model = fresh()
    tuned(model, tmp_path)
    demos, rows = demos_of(model), []
    loop.align(model, demos, DPO, Voices(model, demos, DPO), out=tmp_path / "dpo", seed=0, log=rows.append)
    first = next(row for row in rows if "loss" in row)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert next(row for row in rows if "kl" in row)["kl"] == pytest.approx(0, abs=1e-4)


def test_margins_by_kind_kl_and_lengths_are_noted(tmp_path):
    model = fresh()
    tuned(model, tmp_path)
    demos, rows = demos_of(model), []
    loop.align(model, demos, DPO, Voices(model, demos, DPO), out=tmp_path / "dpo", seed=0, log=rows.append)
    last = [row for row in rows if "loss" in row][-1]
    assert {"margins/expert", "margins/replay", "margins/inter"} <= set(last)
    assert [row["step"] for row in rows if "kl" in row] == [0, 2, 4, 6], "the trained policy is looked at as well"
    counts = pair_counts(3, DPO)
    assert [last[f"pairs/{kind}"] for kind in counts] == list(counts.values())


def test_only_texts_that_ended_get_an_end_token():
    model = tiny_model()
    ended = reply_path(model, user("Which river?"), "Oslo")
    cut = reply_path(model, user("Which river?"), "Oslo", ended=False)
    assert ended.ids[-1] == model.template.end
    assert list(cut.ids) == list(ended.ids[:-1])
    assert ended.targets == cut.targets + 1


def test_two_runs_in_one_process_share_no_samples(tmp_path):
    model = fresh()
    blank = loop.adapter_state(model)
    stores = []
    for name, outputs in (("one", OUTPUTS), ("two", tuple(reversed(OUTPUTS)))):
        loop.set_adapter_state(model, blank)
        demos = demos_of(model, outputs)
        loop.fine_tune(model, demos, SFT, out=tmp_path / name / "sft", seed=0)
        voices = Voices(model, demos, DPO)
        stores.append(loop.align(model, demos, DPO, voices, out=tmp_path / name / "dpo", seed=0)[0])
        assert voices.asked == [0, 2, 4, 6]
    own = [{path.key for path in store.paths[len(OUTPUTS):]} for store in stores]
    alone = fresh()
    loop.fine_tune(alone, demos_of(alone, tuple(reversed(OUTPUTS))), SFT, out=tmp_path / "alone" / "sft", seed=0)
    demos = demos_of(alone, tuple(reversed(OUTPUTS)))
    store, _ = loop.align(alone, demos, DPO, Voices(alone, demos, DPO), out=tmp_path / "alone" / "dpo", seed=0)
    assert {path.key for path in store.paths[len(OUTPUTS):]} == own[1] != own[0]


def test_a_single_demonstration_works(tmp_path):
    model = fresh()
    demos = demos_of(model)[:1]
    loop.fine_tune(model, demos, SFT, out=tmp_path / "sft", seed=0)
    rows = []
    loop.align(model, demos, DPO, Voices(model, demos, DPO), out=tmp_path / "dpo", seed=0, log=rows.append)
    assert rows[-1]["step"] == DPO.steps


def test_a_killed_run_goes_on_to_the_same_weights_and_asks_for_no_sample_twice(tmp_path):
    def prepared(name):
        model = fresh()
        tuned(model, tmp_path / name)
        return model, demos_of(model)

    model, demos = prepared("whole")
    loop.align(model, demos, DPO, Voices(model, demos, DPO), out=tmp_path / "whole" / "dpo", seed=0)
    expected = loop.adapter_state(model)

    model, demos = prepared("torn")
    voices = Voices(model, demos, DPO)

    def kill(row):
        if row["step"] == 5 and "loss" in row:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        loop.align(model, demos, DPO, voices, out=tmp_path / "torn" / "dpo", seed=0, log=kill)
    model, demos = prepared("torn")
    again = Voices(model, demos, DPO)
    again.texts = voices.texts  # what the tree log holds
    loop.align(model, demos, DPO, again, out=tmp_path / "torn" / "dpo", seed=0)
    assert again.asked == [4, 6], "only the sampling of the last checkpoint is asked for again, and the last one"
    for name, tensor in loop.adapter_state(model).items():
        assert torch.equal(tensor, expected[name]), name


def test_what_a_kill_left_of_an_older_checkpoint_is_removed_by_the_next_run(tmp_path):
    held, texts = {}, {}
    for _ in range(2):
        model = fresh()
        tuned(model, tmp_path)
        demos = demos_of(model)
        voices = Voices(model, demos, DPO)
        voices.texts = texts
        loop.align(model, demos, DPO, voices, out=tmp_path / "dpo", seed=0)
        held = held or half_removed(tmp_path / "dpo" / "checkpoints")
    assert files_in(tmp_path / "dpo" / "checkpoints") == held


def test_a_sample_that_was_lost_from_the_log_is_said_again_and_training_ends_the_same(tmp_path):
    model = fresh()
    tuned(model, tmp_path)
    demos = demos_of(model)
    voices = Voices(model, demos, DPO)
    loop.align(model, demos, DPO, voices, out=tmp_path / "dpo", seed=0)
    expected, rows = loop.adapter_state(model), (tmp_path / "dpo" / "metrics.jsonl").read_text()
    texts = dict(voices.texts)
    for lost in ("0/1/2", "4/0/0"):
        model = fresh()
        tuned(model, tmp_path)
        again = Voices(model, demos, DPO)
        again.texts = {key: text for key, text in texts.items() if key != lost}
        with pytest.warns(UserWarning, match=f"{lost}.* was lost from the log"):
            loop.align(model, demos, DPO, again, out=tmp_path / "dpo", seed=0)
        assert again.texts == texts and (tmp_path / "dpo" / "metrics.jsonl").read_text() == rows
        for name, tensor in loop.adapter_state(model).items():
            assert torch.equal(tensor, expected[name]), name


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    model = fresh()
    tuned(model, tmp_path)
    demos = demos_of(model)
    loop.align(model, demos, DPO, Voices(model, demos, DPO), out=tmp_path / "dpo", seed=0)
    other = DPO.model_copy(update={"beta": 0.9})
    with pytest.raises(ConfigError, match="other settings"):
        loop.align(model, demos, other, Voices(model, demos, other), out=tmp_path / "dpo", seed=0)


@pytest.mark.parametrize(("stop_over", "expected"), [("epoch", 4), ("batch", 3)])
def test_fine_tuning_stops_at_the_loss_target_over_an_epoch_or_a_batch(tmp_path, monkeypatch, stop_over, expected):
    losses = iter([3.0, 1.2, 0.8, 1.1, 0.7, 0.6, 0.5, 0.4])

    def descend(self, paths, loss, rate):
        self.step += 1
        return {"step": self.step, "loss": next(losses)}
    monkeypatch.setattr(loop.Training, "descend", descend)
    model = fresh()
    settings = SFTStage(batch=2, max_steps=8, stop_loss=1.0, stop_over=stop_over)
    assert loop.fine_tune(model, demos_of(model), settings, out=tmp_path, seed=0) == expected


def test_the_moving_reference_follows_the_policy_and_the_fixed_one_does_not(tmp_path):
    found = {}
    for kind in ("sft", "moving"):
        model = fresh()
        tuned(model, tmp_path / kind)
        settings = DPO.model_copy(update={"reference": kind})
        demos, rows = demos_of(model), []
        loop.align(model, demos, settings, Voices(model, demos, settings), out=tmp_path / kind / "dpo", seed=0,
                   log=rows.append)
        found[kind] = rows
    first = {kind: [next(row["loss"] for row in rows if row["step"] == step and "loss" in row) for step in (1, 3, 5)]
             for kind, rows in found.items()}
    assert first["moving"] == pytest.approx([math.log(2)] * 3, abs=1e-4), "each phase starts at its own reference"
    assert first["sft"][0] == pytest.approx(math.log(2), abs=1e-4) and abs(first["sft"][2] - math.log(2)) > 1e-3


@pytest.mark.parametrize("kind", ["sft", "moving"])
def test_the_distance_noted_is_from_the_sft_policy_whatever_the_reference(tmp_path, kind):
    model = fresh()
    start = tuned(model, tmp_path)
    settings = DPO.model_copy(update={"reference": kind})
    demos, rows = demos_of(model), []
    voices = Voices(model, demos, settings)
    loop.align(model, demos, settings, voices, out=tmp_path / "dpo", seed=0, log=rows.append)
    last = rows[-1]
    assert last["step"] == 6 and "kl" in last
    said = [voices.path(demo, f"6/{demo}/{at}") for demo in range(3) for at in range(settings.samples)]
    policy = score_paths(model.module, said, budget=4096)
    with loop.wearing(model, start):
        frozen = score_paths(model.module, said, budget=4096)
    assert last["kl"] == pytest.approx(float((policy - frozen).mean()), abs=1e-4) and abs(last["kl"]) > 0.01


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo"])
def test_every_loss_and_optimiser_trains_and_resumes(tmp_path, optimizer, loss):
    model = fresh()
    tuned(model, tmp_path)
    settings = DPO.model_copy(update={"optimizer": optimizer, "loss": loss, "steps": 2, "resample_every": 1})
    demos = demos_of(model)
    voices = Voices(model, demos, settings)
    loop.align(model, demos, settings, voices, out=tmp_path / "dpo", seed=0)
    asked = list(voices.asked)
    loop.align(model, demos, settings, voices, out=tmp_path / "dpo", seed=0)
    assert voices.asked == asked == [0, 1, 2]


def test_pair_losses_by_hand():
    policy, reference = torch.tensor([[-1.0, -5.0]]), torch.tensor([[-2.0, -3.0]])  # margin 1 + 2 = 3
    assert loop.pair_losses(policy, reference, 0.1, "sigmoid").item() == pytest.approx(math.log(1 + math.exp(-0.3)))
    assert loop.pair_losses(policy, reference, 0.1, "hinge").item() == pytest.approx(0.7)
    assert loop.pair_losses(policy, reference, 0.1, "ipo").item() == pytest.approx((3 - 5) ** 2)


def test_a_loss_that_is_not_a_number_is_told(tmp_path, monkeypatch):
    model = fresh()
    monkeypatch.setattr(loop, "backward", lambda *args, **kwargs: (math.nan, {}))
    with pytest.raises(TrainingError, match=r"step 1: the loss is nan on rows text 0"):
        loop.fine_tune(model, demos_of(model), SFT, out=tmp_path, seed=0)


def test_plain_dpo_on_labelled_pairs_raises_the_chosen_over_the_rejected(tmp_path):
    model = fresh()
    paths = [reply_path(model, user("Which river?"), text) for text in ("Oslo, zzz", "Rome", "Paris, zzz", "Vienna")]
    before = score_paths(model.module, paths, budget=4096)
    loop.fit_pairs(model, paths, DPO, out=tmp_path, seed=0, batch=2)
    change = score_paths(model.module, paths, budget=4096) - before
    assert change[0] > change[1] and change[2] > change[3]


def test_ditto_raises_a_toy_author_s_held_out_texts_above_sft(tmp_path):
    """An author with a word of its own: held out, its log-probability margin over the same text without it grows."""
    model = fresh(rank=8)
    tuned(model, tmp_path)
    held = [reply_path(model, user("Are you sure?"), text) for text in ("Yes, I am sure, zzz", "Yes, I am sure")]

    def margin():
        marked, bare = score_paths(model.module, held, budget=4096).tolist()
        return marked - bare
    before = margin()
    demos = demos_of(model)
    settings = DPO.model_copy(update={"steps": 20, "resample_every": 5, "lr": 1e-3})
    loop.align(model, demos, settings, Voices(model, demos, settings), out=tmp_path / "dpo", seed=0)
    assert margin() > before
