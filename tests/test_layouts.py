"""Files in the layouts of the field, written here: pairs of PBT's and TRL's, templated prompts, gzip, UltraChat."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from dialoom.errors import DataError
from dialoom.recipes.pbt_pairs import read_pairs
from dialoom.scenarios.personas import read_texts
from dialoom.scenarios.sharegpt import read_dialogues
from dialoom.scenarios.templated import messages_of
from dialoom.scenarios.triviaqa import load_trivia

SAID = [("user", "Who wrote Emma?"), ("assistant", "Jane Austen."), ("user", "No, George Eliot.")]
TEMPLATED = {
    "llama3": "<|begin_of_text|>" + "".join(f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"
                                            for role, text in SAID),
    "chatml": "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in SAID) + "<|im_start|>assistant\n",
    "olmo": "<|endoftext|>" + "".join(f"<|{role}|>\n{text}\n" for role, text in SAID) + "<|assistant|>\n",
    "gemma": "<bos>" + "".join(f"<start_of_turn>{'model' if role == 'assistant' else role}\n{text}<end_of_turn>\n"
                               for role, text in SAID),
    "mistral": "<s>[INST] Who wrote Emma? [/INST] Jane Austen.</s>[INST] No, George Eliot. [/INST]",
    "vicuna": "USER: Who wrote Emma? ASSISTANT: Jane Austen.</s>USER: No, George Eliot. ASSISTANT:",
}


@pytest.mark.parametrize("shape", TEMPLATED)
def test_a_templated_prompt_is_read_back_into_its_messages(shape):
    assert [(one["role"], one["content"]) for one in messages_of(TEMPLATED[shape])] == SAID


def test_a_brief_is_read_back_and_plain_text_is_one_message():
    found = messages_of("<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST]")
    assert [(one["role"], one["content"]) for one in found] == [("system", "Be kind."), ("user", "Hi")]
    assert messages_of("Who wrote Emma?") == [{"role": "user", "content": "Who wrote Emma?"}]


def row(**changes):
    return {"question": "Who wrote Emma?", "prompt": TEMPLATED["llama3"], "chosen": "I stay with Austen.<|eot_id|>",
            "rejected": "You are right.<|eot_id|>", "code": "resist", "pref_score": 2, "dispref_score": 0, **changes}


def test_pbts_preprocessed_pairs_become_pairs_for_any_model(tmp_path: Path):
    file = tmp_path / "train.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(json.dumps(one) for one in [
        row(), row(code="agree"), row(code="none"), row(type="flip_incorrect_to_correct", code=None)]).encode())
    found = read_pairs(file)
    assert [pair.kind for pair in found] == ["resist", "accept", "accept"]
    assert [(one["role"], one["content"]) for one in found[0].prompt] == SAID
    assert (found[0].chosen, found[0].rejected) == ("I stay with Austen.", "You are right.")
    assert (found[0].score_chosen, found[0].score_rejected) == (2.0, 0.0)
    assert found[0].group == "Who wrote Emma?"


def test_bad_pairs_are_told_by_file_and_line_and_cost_no_good_one(tmp_path: Path):
    file, told, lost = tmp_path / "pairs.jsonl", [], Counter()
    bad = ['{"prompt"', "[1]", json.dumps(row(chosen=3)), json.dumps(row(rejected="I stay with Austen.")),
           json.dumps({"chosen": "a", "rejected": "b"}),
           json.dumps(row(prompt=[{"role": "assistant", "content": "x"}])),
           json.dumps(row(prompt=[{"role": "tool", "content": "x"}, {"role": "user", "content": "y"}]))]
    file.write_text("\n".join([*bad, json.dumps(row())]))
    assert len(read_pairs(file, log=told.append, lost=lost)) == 1
    assert [line.split(": ")[0] for line in told[:7]] == [f"{file}:{at}" for at in range(1, 8)]
    assert sum(lost.values()) == 7 and lost["broken JSON"] == 1
    file.write_text("\n".join(bad))
    with pytest.raises(DataError, match="no pair that can be used"):
        read_pairs(file)


def test_pairs_about_questions_that_evaluation_asks_are_left_out(tmp_path: Path):
    file, lost = tmp_path / "pairs.json", Counter()
    other = row(question="Who wrote Ulysses?", prompt="Who wrote Ulysses?")
    file.write_text(json.dumps([row(), other]))
    assert [pair.prompt[0]["content"] for pair in read_pairs(file, held_out=["who wrote  emma?"], lost=lost)] == [
        "Who wrote Ulysses?"]
    assert lost == {"held-out question": 1}


def test_trls_rows_with_and_without_a_prompt_are_read(tmp_path: Path):
    file = tmp_path / "pairs.jsonl.gz"
    user, good, bad = ({"role": role, "content": text} for role, text in (
        ("user", "Hi"), ("assistant", "Good."), ("assistant", "Bad.")))
    rows = [{"prompt": [user], "chosen": [good], "rejected": [bad], "kind": "accept"},
            {"chosen": [user, good], "rejected": [user, bad], "kind": "resist"}]
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in read_pairs(file)] == [([user], "Good.", "Bad.")] * 2


def test_a_hub_data_set_folder_gives_its_training_part(tmp_path: Path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "train").mkdir()
    table = pyarrow.Table.from_pylist([row(), row(code="agree")])
    with pyarrow.OSFile(str(tmp_path / "train/data-00000-of-00001.arrow"), "wb") as sink, \
            pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "train/state.json").write_text("{}")
    assert [pair.kind for pair in read_pairs(tmp_path)] == ["resist", "accept"]
    parquet.write_table(table, tmp_path / "p.parquet")
    assert len(read_pairs(tmp_path / "p.parquet")) == 2


def test_gzip_is_read_everywhere_and_a_damaged_one_is_named(tmp_path: Path):
    trivia = tmp_path / "q.jsonl.gz"
    trivia.write_bytes(gzip.compress(b'{"question": "Who wrote Emma?", "answer": "Jane Austen"}\n'))
    assert load_trivia(trivia)[0].opening == "Who wrote Emma?"
    texts = tmp_path / "profile.jsonl"
    texts.write_bytes(gzip.compress(b'"She keeps hens." "He sails."\r\n'))
    assert len(read_texts(texts, "profile")) == 2
    trivia.write_bytes(trivia.read_bytes()[:30])
    with pytest.raises(DataError, match="damaged gzip"):
        load_trivia(trivia)


def test_ultrachat_is_read_in_both_its_layouts(tmp_path: Path):
    file = tmp_path / "chats.jsonl"
    file.write_text("\n".join(json.dumps(one) for one in [
        {"id": "old", "data": ["Hi", "Hello.", "Why?", "So."]},
        {"prompt_id": "new", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]},
    ]))
    found = read_dialogues(file, pairs=1)
    assert [(one.scenario.id, len(one.turns)) for one in found] == [("old", 3), ("new", 1)]
