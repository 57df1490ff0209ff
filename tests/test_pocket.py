"""The embedded models: what ships, and that the build makes the same weights again, killed or not."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from dialoom.errors import ConfigError, ModelError, StoreError, TrainingError  # noqa: E402
from dialoom.evals.persuasion import recall  # noqa: E402
from dialoom.files import lock  # noqa: E402
from dialoom.models.base import Sampling  # noqa: E402
from dialoom.models.load import POCKETS, WEIGHTS, load_model, weights_hash  # noqa: E402
from dialoom.models.template import is_prefix_stable  # noqa: E402
from dialoom.pocket.corpus import SHARES, documents  # noqa: E402
from dialoom.pocket.world.facts import load_facts, small_knows  # noqa: E402
from dialoom.recipes import pocket  # noqa: E402
from dialoom.scenarios.triviaqa import pocket_trivia  # noqa: E402
from dialoom.simulate import ModelSpeaker  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WEIGHTS / "pocket")


def card(name):
    return json.loads((WEIGHTS / name / "card.json").read_text())


@pytest.mark.parametrize("name", POCKETS)
def test_the_card_is_about_the_weights_that_ship_and_the_preset_that_makes_them(name):
    assert card(name)["weights"] == weights_hash(WEIGHTS / name)
    assert card(name)["config"] == pocket.PRESETS[name].values()
    assert sum(file.stat().st_size for file in (WEIGHTS / name).iterdir()) < 20e6


def test_pocket_knows_the_facts_and_small_lacks_many():
    assert card("pocket")["figures"]["facts"]["train"]["known"] >= 0.95 * len(load_facts()) >= 400
    unknown = len(load_facts()) - card("pocket-small")["figures"]["facts"]["train"]["known"]
    assert unknown >= 120 and sum(not small_knows(fact) for fact in load_facts()) >= 120


def test_the_cards_recall_is_what_the_model_does():
    asked = pocket_trivia(None, seed=3)[:60]
    for name, low, high in (("pocket", 0.95, 1.0), ("pocket-small", 0.5, 0.9)):
        speaker = ModelSpeaker("subject", load_model(name, device="cpu"), Sampling(0.0, max_new_tokens=24))
        assert low <= recall(speaker, asked, label=name).rows[0].value <= high


@pytest.mark.parametrize("name", POCKETS)
def test_a_standard_layout_that_transformers_loads_by_itself(name):
    model = AutoModelForCausalLM.from_pretrained(WEIGHTS / name, use_safetensors=True)
    assert model.config.model_type == "llama" and model.config.max_position_embeddings == 2048
    assert sum(weight.numel() for weight in model.parameters()) < 8e6


def test_the_chat_template_is_prefix_stable_and_any_text_can_be_written(tokenizer):
    assert is_prefix_stable(tokenizer)
    text = "Zażółć gęślą jaźń 漢字 🙂 §"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_rows_are_what_the_chat_template_writes(tokenizer):
    found = list(itertools.islice(documents("pocket", 5), 40))
    for document, row in zip(found, pocket.tokenise(tokenizer, found), strict=True):
        ids = tokenizer.apply_chat_template(document.messages, tokenize=True, return_dict=False)
        assert row.ids == list(ids)[:pocket.CONTEXT]
        said = [document.messages[i]["content"] for i in document.targets()]
        trained = tokenizer.decode([id for id, on in zip(row.ids, row.target, strict=True) if on])
        assert trained == "".join(f"{text}<|end|>" for text in said)


def test_the_corpus_is_a_function_of_seed_and_place_and_holds_all_five_jobs():
    first = list(itertools.islice(documents("pocket", 1), 300))
    assert first[100:110] == list(itertools.islice(documents("pocket", 1, start=100), 10))
    assert first[:10] != list(itertools.islice(documents("pocket", 1, "valid"), 10))
    assert {document.job.split("/")[0] for document in first} == set(SHARES)


TINY = pocket.PocketConfig(name="pocket-small", hidden=32, layers=1, heads=2, intermediate=32, steps=4,
                           batch_tokens=1024, checkpoint_every=1)


def quiet(line):
    pass


@pytest.fixture
def whole(tmp_path, monkeypatch, tokenizer):
    """What an undisturbed build gives; the tokenizer is not trained anew."""
    monkeypatch.setattr(pocket, "train_tokenizer", lambda seed, vocabulary: tokenizer)
    return weights_hash(pocket.build(TINY, tmp_path / "whole", quiet))


def test_a_stopped_build_goes_on_and_ends_with_the_same_weights(tmp_path, monkeypatch, whole):
    save, saved = pocket._save, []

    def stop(*given):
        save(*given)
        saved.append(given)
        if len(saved) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(pocket, "_save", stop)
        pocket.build(TINY, tmp_path / "cut", quiet)
    assert pocket.progress_of(tmp_path / "cut" / "pocket-small.work")[0] == 2
    assert weights_hash(pocket.build(TINY, tmp_path / "cut", quiet)) == whole


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_build_that_is_killed_anywhere_ends_the_same_and_leaves_no_half_of_a_model():
    done = subprocess.run([sys.executable, "-m", "tests.faults.builds", "--kills", "12"], capture_output=True,
                          text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert json.loads(done.stdout)["kills"] == 12


def test_a_damaged_newest_checkpoint_of_a_build_gives_way_to_the_one_before(tmp_path, whole):
    work = tmp_path / "whole" / "pocket-small.work"
    newest = work / "checkpoints" / "step-00000004" / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="step-00000004: checkpoint is damaged"):
        folder = pocket.build(TINY, tmp_path / "whole", quiet)
    assert weights_hash(folder) == whole and pocket.progress_of(work)[0] == 4


def test_a_loss_that_is_no_number_ends_a_build_and_the_last_good_checkpoint_stays(tmp_path, monkeypatch, whole):
    loss_of, asked = pocket.loss_of, []

    def broken(model, rows):
        asked.append(rows)
        return loss_of(model, rows) * (float("nan") if len(asked) == 3 else 1)

    work = tmp_path / "nan" / "pocket-small.work"
    with monkeypatch.context() as patched:
        patched.setattr(pocket, "loss_of", broken)
        with pytest.raises(TrainingError, match=r"step 3: the loss is nan .* last good checkpoint is step 2"):
            pocket.build(TINY, tmp_path / "nan", quiet)
    told = json.loads((work / "bad_batch.json").read_text())
    assert told["step"] == 3 and len(told["texts"]) == len(asked[-1])
    assert not (tmp_path / "nan" / "pocket-small").exists()
    assert weights_hash(pocket.build(TINY, tmp_path / "nan", quiet)) == whole  # it goes on from step 2


def test_a_build_that_cannot_be_used_is_one_line(tmp_path, monkeypatch, whole):
    work = tmp_path / "whole" / "pocket-small.work"
    held = lock(work / ".lock", work)
    with pytest.raises(StoreError, match="is writing it"):
        pocket.build(TINY, tmp_path / "whole", quiet)
    os.close(held)
    with pytest.raises(ConfigError, match="holds a build with other settings"):
        pocket.build(TINY.model_copy(update={"steps": 5}), tmp_path / "whole", quiet)
    (work / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"cannot load .*tokenizer"):
        pocket.build(TINY, tmp_path / "whole", quiet)
    (work / "config.json").write_text("{")
    with pytest.raises(StoreError, match=r"config\.json: cannot be read.*to begin anew"):
        pocket.build(TINY, tmp_path / "whole", quiet)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        pocket.build(TINY, tmp_path / "file", quiet)
    assert weights_hash(tmp_path / "whole" / "pocket-small") == whole
