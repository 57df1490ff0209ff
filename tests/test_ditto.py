"""DITTO as a recipe: authors, arms, writing into trees, whole runs on tiny models and on pocket."""

import json
import math

import pytest
import torch
from safetensors.torch import load, save

from dialoom.dialogue import DialogueTree
from dialoom.errors import ConfigError, DataError, ModelError, StoreError
from dialoom.models.base import Completion, Sampling
from dialoom.models.scripted import ScriptedModel
from dialoom.recipes import ditto
from dialoom.recipes.ditto_config import ABLATIONS, PAPER, PRESETS, DittoConfig, DPOStage, SFTStage
from dialoom.recipes.ditto_eval import shown_by
from dialoom.recipes.ditto_train import arm_settings, arms_of, distinct, file_name, label_copies, padded
from dialoom.recipes.ditto_write import (
    FEW_SHOT,
    Writer,
    add_demonstration,
    briefed,
    few_shot,
    place,
    self_prompt,
    task_chat,
    write,
)
from dialoom.recipes.run import RunFolder
from dialoom.scenarios.demonstrations import load_demonstrations, pocket_demonstrations
from dialoom.store import TreeLog, read_rows, read_trees
from tests.tiny import tiny_model

QUICK = {"sft": {"max_steps": 4, "lr": 1e-3}, "dpo": {"steps": 4, "resample_every": 2, "samples": 3},
         "lora_rank": 4, "max_new_tokens": 12, "test_samples": 2}


def mails(tmp_path, count=8, name="demos.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(json.dumps({"prompt": f"Which river is number {n}?", "output": f"It is river {n}, zzz"})
                              for n in range(count)))
    return path


def config_of(tmp_path, context=1024, **more):
    model = tmp_path / "tiny"
    tiny_model(context=context).save(model)
    return DittoConfig.model_validate({"model": f"hf:{model}", "device": "cpu", **QUICK, **more})


def run(config, out, **given):
    lines = []
    with RunFolder(out, "ditto", config, data_hash=ditto.data_hash(config), log=lines.append) as folder:
        ditto.run(config, folder, log=lines.append, **given)
    return lines


def results(out):
    return {(row["eval"], row["subject"], row["metric"]): row for row in json.loads((out / "results.json").read_text())
            if row["seed"] is not None}


def said_in(log):
    return {(turn.id, turn.text) for tree in read_trees(log).values() for turn in tree}


# ------------------------------------------------------------------------------------------------ authors


def test_training_demonstrations_are_cut_and_held_out_ones_stay():
    authors = ditto.authors_of(DittoConfig(train_demos=3, max_authors=2))
    assert [author.name for author in authors] == ["Alma", "Bruno"]
    assert [len(authors[0].split(split)) for split in ("train", "validation", "test")] == [3, 3, 3]


def test_authors_are_chosen_by_name():
    assert [author.name for author in ditto.authors_of(DittoConfig(authors=("Nils", "Alma")))] == ["Nils", "Alma"]
    with pytest.raises(ConfigError, match="did you mean Alma"):
        ditto.authors_of(DittoConfig(authors=("Allma",)))


def test_a_user_s_author_is_asked_for_by_name(tmp_path):
    config = DittoConfig(demos=str(mails(tmp_path)), authors=("me",))
    with pytest.raises(ConfigError, match="--authors me: not among the authors; expected one of: you"):
        ditto.authors_of(config)


def test_the_same_text_on_the_same_task_is_used_once_and_told(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "a", "output": "b", "split": "train"}\n' * 2)
    told = []
    author, = ditto.authors_of(DittoConfig(demos=str(path)), told.append)
    assert len(author.demos) == 1 and "d.jsonl:2: the same text" in told[0]


def test_the_data_s_hash_follows_its_content(tmp_path):
    first = ditto.data_hash(DittoConfig(demos=str(mails(tmp_path, 4))))
    assert first == ditto.data_hash(DittoConfig(demos=str(mails(tmp_path, 4, "copy.jsonl"))))
    assert first != ditto.data_hash(DittoConfig(demos=str(mails(tmp_path, 5))))
    assert ditto.data_hash(DittoConfig()) == ""


def test_names_of_authors_become_different_file_names():
    assert file_name("Ada") == "Ada"
    assert len({file_name(name) for name in ("a/b", "a b", "a-b", "../a")}) == 4
    assert "/" not in file_name("../../etc")


# ------------------------------------------------------------------------------------------------ arms


def test_an_author_s_arms_follow_from_the_settings():
    author = ditto.authors_of(DittoConfig(max_authors=1))[0]
    assert arms_of(DittoConfig(), author) == ["sft", "ditto", "spin", "sft_long"]
    config = DittoConfig(pool=("sft",), beside=(), ablation=("no-replay",), growth=(1, 7, 3), labelled=50)
    assert arms_of(config, author) == ["sft", "ditto", "no_replay", "ditto_1", "ditto_3", "dpo_50"]


def test_long_fine_tuning_goes_on_where_the_other_stops(tmp_path):
    config = DittoConfig(authors=("Mira",), pool=("sft",), beside=("sft_long",), max_new_tokens=4, test_samples=1,
                         lora_rank=1, sft=SFTStage(max_steps=4, stop_loss=100.0),
                         dpo=DPOStage(steps=1, samples=1, resample_every=1))
    run(config, tmp_path)
    stages = {name: json.loads((tmp_path / "stages" / f"train-Mira-{name}.json").read_text())["value"]
              for name in ("sft", "sft_long")}
    assert stages["sft"]["sft_steps"] == 2 < stages["sft_long"]["sft_steps"] == 4  # two batches are an epoch


def test_each_ablation_changes_one_thing():
    config = DittoConfig()
    own = config.dpo.model_dump()
    changed = {arm: {name for name, value in arm_settings(config, arm).model_dump().items() if value != own[name]}
               for arm in ("ditto", "ditto_3", *(name.replace("-", "_") for name in ABLATIONS))}
    assert changed["ditto"] == changed["ditto_3"] == set()
    assert changed["no_resampling"] == {"resampling", "samples"}
    assert changed["moving_reference"] == {"reference"}
    assert changed["no_replay"] == {"expert", "replay", "inter"}
    spin = arm_settings(config, "spin")
    assert (spin.reference, spin.expert, spin.replay, spin.inter) == ("moving", 1, 0, 0)


def test_no_resampling_draws_as_many_samples_up_front():
    config = DittoConfig(dpo=DPOStage(steps=40, resample_every=10, samples=10))
    assert arm_settings(config, "no_resampling").samples == 40


def test_without_one_kind_the_others_keep_the_size_of_the_batch():
    config = DittoConfig(dpo=DPOStage(expert=0.7, replay=0.2, inter=0.1))
    settings = arm_settings(config, "no_replay")
    assert settings.expert + settings.inter == pytest.approx(1) and settings.replay == 0
    assert settings.expert / settings.inter == pytest.approx(7)
    alone = DittoConfig(dpo=DPOStage(expert=0, replay=0.5, inter=0))
    with pytest.raises(DataError, match="nothing would be left"):
        arm_settings(alone, "no_replay")


def test_the_paper_preset_holds_the_paper_s_values():
    assert (PAPER.lora_rank, PAPER.lora_alpha, PAPER.train_demos) == (16, 32, 7)
    assert (PAPER.sft.lr, PAPER.sft.batch, PAPER.sft.max_steps, PAPER.sft.warmup) == (3e-5, 4, 30, 0.1)
    dpo = PAPER.dpo
    assert (dpo.lr, dpo.steps, dpo.beta, dpo.samples, dpo.resample_every) == (1e-6, 40, 0.05, 10, 10)
    assert (dpo.expert, dpo.replay, dpo.inter, dpo.temperature) == (0.7, 0.2, 0.1, 1.0)
    assert set(PRESETS) == {"pocket", "paper"}


# ------------------------------------------------------------------------------------------------ writing


def test_texts_are_children_of_their_task_and_written_once(tmp_path):
    demos = pocket_demonstrations(["Alma"])[:2]
    asked = []

    def say(chat):
        asked.append(chat)
        return f"text {len(asked)}"
    writer = Writer("sft", ScriptedModel(say), Sampling(1.0), copies=3)
    with TreeLog(tmp_path / "trees.jsonl") as log:
        trees = [DialogueTree(demo.scenario) for demo in demos]
        for tree, demo in zip(trees, demos, strict=True):
            add_demonstration(tree, demo, log)
        first = write(trees, writer, seed=1, sink=log)
        assert write(trees, writer, seed=1, sink=log) == first and len(asked) == 6
    found = read_trees(tmp_path / "trees.jsonl")
    turns = list(found[trees[0].id])
    assert [turn.speaker for turn in turns] == ["Alma", "sft", "sft", "sft"]
    assert turns[0].text == demos[0].output and all(turn.parent is None for turn in turns)
    assert asked[0] == demos[0].chat


def test_a_task_with_messages_before_it_is_written_on_after_them(tmp_path):
    path = tmp_path / "d.jsonl"
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Now a poem."}]
    path.write_text(json.dumps({"prompt": messages, "output": "Roses"}))
    demo, = load_demonstrations(path)
    tree, asked = DialogueTree(demo.scenario), []
    own = add_demonstration(tree, demo)
    writer = Writer("sft", ScriptedModel(lambda chat: asked.append(chat) or "Violets"), Sampling(1.0))
    turn = write([tree], writer, seed=1)[0][0]
    assert asked == [messages] and task_chat(tree.dialogue(place(tree))) == messages
    assert [one.text for one in tree.dialogue(turn).turns] == ["Hello", "Now a poem.", "Violets"]
    assert own.parent == turn.parent


def test_a_text_cut_at_the_limit_is_noted(tmp_path):
    class Cut:
        name = fingerprint = "cut"

        def chat(self, chats, sampling, keys):
            return [Completion("on and on", "length") for _ in chats]
    tree = DialogueTree(pocket_demonstrations(["Alma"])[0].scenario)
    assert write([tree], Writer("sft", Cut(), Sampling(1.0)), seed=1)[0][0].notes["finish"] == "length"


def test_prompts_of_the_baselines_show_the_demonstrations_and_are_not_pocket_s_own():
    demos = pocket_demonstrations(["Alma"])[:3]
    shot = few_shot(demos)([{"role": "user", "content": "Write a poem."}])
    assert all(demo.output in shot[0]["content"] for demo in demos) and shot[0]["content"].endswith("Write a poem.")
    assert "Texts by one author" not in FEW_SHOT and "Write as this author" not in FEW_SHOT
    asked = []
    model = ScriptedModel(lambda chat: asked.append(chat) or "Use exclamation marks.")
    told = self_prompt(model, demos, 20, "key")([{"role": "user", "content": "Write a poem."}])
    assert "Use exclamation marks." in told[0]["content"] and demos[0].output in asked[0][0]["content"]
    assert briefed("Alma", 1)([{"role": "user", "content": "x"}])[0]["role"] == "system"


def test_missing_texts_are_empty_ones_and_variety_is_counted():
    assert padded(["a"], 3) == ["a", "", ""]
    assert distinct(["a b a b"], 1) == 0.5 and distinct(["a b a b"], 2) == pytest.approx(2 / 3)
    assert distinct([], 1) == 0


# ------------------------------------------------------------------------------------------------ whole runs


def test_a_run_on_a_user_s_texts_goes_to_its_end_and_loads_everything_again(tmp_path):
    config = config_of(tmp_path, demos=str(mails(tmp_path)))
    out = tmp_path / "run"
    lines = run(config, out)
    found = results(out)
    pool = ("zero_shot", "few_shot", "sft", "spin", "ditto")
    assert sum(found["winrate", name, "micro"]["value"] for name in pool) == pytest.approx(2.5)
    tests = len(ditto.authors_of(config)[0].split("test"))
    assert found["winrate", "ditto", "micro"]["n"] == tests * 2 * 4 * 2
    assert ("beside", "self_prompt", "micro") in found and ("beside", "briefed", "micro") not in found
    assert found["held_out", "sft", "perplexity"]["value"] < found["held_out", "base", "perplexity"]["value"]
    assert found["held_out", "sft", "perplexity"]["value"] == pytest.approx(
        math.exp(-found["held_out", "sft", "logprob"]["value"]))
    assert any("likeness to the author's held-out texts" in line for line in lines)
    assert (out / "adapter" / "adapter_config.json").exists()
    assert {row["kind"] for row in read_rows(out / "pairs.jsonl")} == {"expert", "replay", "inter"}
    assert {"kl", "distinct_2", "sample_words", "valid/win_rate_over_sft", "margins/expert"} <= {
        name for row in read_rows(out / "metrics.jsonl") for name in row}
    before = (out / "trees.jsonl").read_bytes()
    again = run(config, out)
    assert (out / "trees.jsonl").read_bytes() == before and not any("done in" in line for line in again)


def test_the_pairs_name_the_turns_they_were_cut_from(tmp_path):
    config = config_of(tmp_path, demos=str(mails(tmp_path)), pool=("sft",), beside=())
    run(config, tmp_path / "run", stages=("train",))
    trees = read_trees(tmp_path / "run" / "trees.jsonl")
    for row in read_rows(tmp_path / "run" / "pairs.jsonl"):
        chosen, rejected = (trees[row["tree"]][row[f"{side}_turn"]] for side in ("chosen", "rejected"))
        assert (chosen.text, rejected.text) == (row["chosen"][0]["content"], row["rejected"][0]["content"])
        assert (chosen.speaker == "you") == (row["kind"] != "inter")
        assert rejected.speaker != "you"


@pytest.mark.slow
def test_a_run_killed_in_the_loop_ends_like_one_that_was_not(tmp_path, monkeypatch):
    from dialoom.recipes import ditto_loop

    config = config_of(tmp_path, demos=str(mails(tmp_path)), pool=("sft",), beside=())
    run(config, tmp_path / "whole")
    real, left = ditto_loop.Training.descend, [7]

    def dying(self, *given):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return real(self, *given)
    monkeypatch.setattr(ditto_loop.Training, "descend", dying)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "torn")
    monkeypatch.setattr(ditto_loop.Training, "descend", real)
    run(config, tmp_path / "torn")
    whole, torn = results(tmp_path / "whole"), results(tmp_path / "torn")
    assert whole == torn
    assert said_in(tmp_path / "whole" / "trees.jsonl") == said_in(tmp_path / "torn" / "trees.jsonl")


@pytest.mark.slow
def test_a_finished_run_whose_log_lost_an_early_sample_says_it_again_and_ends_the_same(tmp_path):
    config = config_of(tmp_path, demos=str(mails(tmp_path)), pool=("sft",), beside=())
    run(config, tmp_path / "run")
    log = tmp_path / "run" / "trees.jsonl"
    expected, turns = results(tmp_path / "run"), said_in(log)
    lines = log.read_bytes().split(b"\n")
    at = next(at for at, line in enumerate(lines) if b'"checkpoint":0' in line)
    lines[at] = lines[at].replace(b'"turn"', b'"torn"')
    log.write_bytes(b"\n".join(lines))
    with pytest.warns(UserWarning, match="was lost from the log"):
        run(config, tmp_path / "run")
    assert results(tmp_path / "run") == expected and said_in(log) == turns


@pytest.mark.slow
def test_several_authors_ablations_growth_and_labelled_pairs_in_one_run(tmp_path):
    rows = [{"author": author, "prompt": f"Which river is number {n}?", "output": f"It is {word} {n}"}
            for author, word in (("Ada", "water"), ("Bo", "zzz")) for n in range(6)]
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config = config_of(tmp_path, demos=str(path), ablation=ABLATIONS, growth=(1, 2), labelled=5, pool=("sft",),
                       beside=())
    out = tmp_path / "run"
    run(config, out)
    found = results(out)
    named = [("ablation", name.replace("-", "_")) for name in ABLATIONS] + [("growth", "ditto_1"), ("growth", "ditto"),
                                                                            ("beside", "dpo_5")]
    assert all((name, subject, "micro") in found for name, subject in named)
    rates = json.loads((out / "winrate.json").read_text())
    assert set(rates["ablation"]["ditto"]) == {"Ada", "Bo"}
    assert (out / "authors" / "Ada" / "adapter").is_dir() and not (out / "adapter").exists()


def damaged(data):
    yield "cut", data[:len(data) // 2]
    yield "empty", b""
    yield "flipped", bytes([data[0] ^ 255]) + data[1:]
    yield "another's", save({"lora_x": torch.zeros(2)})


def test_a_damaged_adapter_is_named_with_what_makes_it_again(tmp_path):
    config = config_of(tmp_path, demos=str(mails(tmp_path)), pool=("sft",), beside=())
    out = tmp_path / "run"
    run(config, out, stages=("train",))
    file, marker = out / "adapters" / "you" / "ditto.safetensors", out / "stages" / "train-you-ditto.json"
    whole = file.read_bytes()
    for what, data in damaged(whole):
        file.write_bytes(data)
        with pytest.raises(StoreError, match=r"ditto.safetensors: .*remove .*train-you-ditto.json"):
            run(config, out)
        assert marker.exists(), what
    marker.unlink()
    run(config, out)
    assert load(file.read_bytes()).keys() == load(whole).keys() and all(
        torch.equal(tensor, load(whole)[name]) for name, tensor in load(file.read_bytes()).items())


def test_an_adapter_that_cannot_be_written_leaves_its_stage_undone(tmp_path, monkeypatch):
    from dialoom.recipes import ditto_train

    config = config_of(tmp_path, demos=str(mails(tmp_path)), pool=("sft",), beside=())
    out, real = tmp_path / "run", ditto_train.write_whole

    def full(path, data):
        if path.name == "ditto.safetensors":
            raise StoreError(f"{path}: cannot be written (No space left on device)")
        real(path, data)
    monkeypatch.setattr(ditto_train, "write_whole", full)
    with pytest.raises(StoreError, match="No space left"):
        run(config, out, stages=("train",))
    assert not (out / "stages" / "train-you-ditto.json").exists()
    monkeypatch.setattr(ditto_train, "write_whole", real)
    run(config, out, stages=("train",))
    assert (out / "adapters" / "you" / "ditto.safetensors").exists()


def test_labels_are_the_judge_s_and_too_few_are_told(tmp_path, monkeypatch):
    from dialoom.recipes.ditto_train import Session

    class Judge:
        name, symmetric, asked = "third", True, 0

        def compare(self, dialogues, left, right):
            first, Judge.asked = Judge.asked, Judge.asked + len(dialogues)
            return ["left" if at < 3 else "tie" for at in range(first, Judge.asked)]
    monkeypatch.setattr(Session, "judge", Judge())
    config = config_of(tmp_path, demos=str(mails(tmp_path)), pool=("sft",), beside=(), labelled=5, judge="model")
    lines = run(config, tmp_path / "run", stages=("train",))
    tasks = len(ditto.authors_of(config)[0].split("train"))
    assert Judge.asked == label_copies(config, ditto.authors_of(config)[0])[1] == tasks * 6
    assert any(f"you: 3 labelled pairs, not 5: so many of {Judge.asked} the judge" in line for line in lines)
    noted = json.loads((tmp_path / "run" / "stages" / "train-you-dpo_5.json").read_text())["value"]
    assert noted["labelled_pairs"] == 3


def test_a_prompt_shows_the_last_demonstrations_that_fit_whole_and_the_run_says_how_many(tmp_path):
    rows = [{"prompt": f"Write note {n}.", "output": f"Note {n}. " + "word " * 20, "split": split}
            for n, split in enumerate(["train"] * 6 + ["test"])]
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config = config_of(tmp_path, context=450, demos=str(path), pool=("few_shot",), beside=("self_prompt",))
    lines = run(config, tmp_path / "run", stages=())
    author, = ditto.authors_of(config)
    model = tiny_model(context=450)
    for method in ("few_shot", "self_prompt"):
        shown = shown_by(method, author, model, 12)
        assert 0 < len(shown) < 6 and shown == author.split("train")[-len(shown):]
        assert any(f"you: {method} shows the last {len(shown)} of 6 demonstrations" in line for line in lines)
    assert shown_by("few_shot", author, tiny_model(context=4096), 12) == author.split("train")
    assert shown_by("few_shot", author, ScriptedModel(lambda chat: ""), 12) == author.split("train")


def test_a_task_that_is_trained_on_and_asked_is_told(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": "Write.", "output": text, "split": split})
                              for text, split in (("a", "train"), ("b", "test"))))
    lines = run(config_of(tmp_path, demos=str(path)), tmp_path / "run", stages=())
    assert any("you: tasks of the split test that other texts train on as well: 1." in line for line in lines)


def test_one_demonstration_trains_and_says_that_nothing_is_measured(tmp_path):
    config = config_of(tmp_path, demos=str(mails(tmp_path, 1)))
    lines = run(config, tmp_path / "run")
    assert any("has one demonstration" in line for line in lines) and any("nothing is measured" in line
                                                                          for line in lines)
    assert (tmp_path / "run" / "adapter").is_dir() and not (tmp_path / "run" / "results.json").exists()


def test_texts_longer_than_the_context_are_left_out_and_named(tmp_path):
    path = mails(tmp_path, 4)
    with path.open("a") as file:
        file.write("\n" + json.dumps({"prompt": "Write.", "output": "word " * 400}))
    short = {"context": 256, "demos": str(path), "pool": ("sft",), "beside": ()}
    lines = run(config_of(tmp_path, **short), tmp_path / "run", stages=("train",))
    assert any("demos.jsonl:5" in line and "reads 256; left out" in line for line in lines)
    path.write_text(json.dumps({"prompt": "Write.", "output": "word " * 400}))
    with pytest.raises(DataError, match="no demonstration to train on fits the 256 tokens"):
        run(config_of(tmp_path, **short), tmp_path / "other", stages=("train",))


def test_an_endpoint_cannot_be_trained_and_exact_is_not_for_your_texts(tmp_path):
    with pytest.raises(ModelError, match="cannot be trained"):
        ditto.plan(DittoConfig(model="openai:x"))
    with pytest.raises(ConfigError, match="exact knows pocket's own authors only"):
        ditto.plan(DittoConfig(demos=str(mails(tmp_path)), judge="exact"))
    with pytest.raises(ConfigError, match="from 1 on"):
        ditto.plan(DittoConfig(growth=(0,)))
    with pytest.raises(ConfigError, match="--judge-model pocket-small: asked with --judge model only"):
        ditto.plan(DittoConfig(judge_model="pocket-small"))


def test_the_plan_counts_texts_and_steps():
    rows = ditto.plan(DittoConfig(max_authors=2, dpo=DPOStage(steps=40, resample_every=10, samples=10)))
    assert [row["stage"] for row in rows] == ["train", "write", "eval"]
    assert rows[0]["texts"] == 2 * 2 * (4 + 1) * 10 * 7 and "160 DPO steps" in rows[0]["what"]
    assert rows[1]["texts"] == 2 * 3 * 3 * 8  # zero-shot, few-shot, self-prompt, briefed and four adapters
