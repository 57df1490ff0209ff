"""Files in the layouts of the field, written here: pairs of PBT's and TRL's, templated prompts, UltraChat;
and every loader on files saved in every way."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from dialoom.dialogue import DialogueTree
from dialoom.errors import DataError
from dialoom.recipes.aloe_data import read_conversations
from dialoom.recipes.pbt_pairs import read_pairs
from dialoom.scenarios.demonstrations import load_demonstrations
from dialoom.scenarios.harmbench import read_behaviours
from dialoom.scenarios.personas import read_personas, read_texts
from dialoom.scenarios.sharegpt import (
    INSTRUCTION_MARK,
    MEMBERS,
    NAME,
    STRATEGY_MARK,
    read_abstractions,
    read_clusters,
    read_dialogues,
    read_extractions,
    read_openings,
    read_questions,
    read_strategies,
)
from dialoom.scenarios.sotopia import load_sotopia
from dialoom.scenarios.templated import messages_of
from dialoom.scenarios.triviaqa import load_trivia

SCENES = Path(__file__).parent / "data" / "sotopia"
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


def test_a_row_of_a_table_that_is_no_text_is_told_and_costs_no_other(tmp_path: Path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist([row(), row(code="agree"), row(), row(code="agree")])
    at = table.schema.get_field_index("rejected")
    texts = [text.encode() for text in table["rejected"].to_pylist()[:3]]
    broken = pyarrow.array([*texts, b"\xff\xfe"], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(table.set_column(at, "rejected", broken), tmp_path / "p.parquet")
    told: list[str] = []
    assert [pair.kind for pair in read_pairs(tmp_path / "p.parquet", log=told.append)] == ["resist", "accept", "resist"]
    assert any("p.parquet:4" in line for line in told) and "1 broken row" in told[-1]


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


# ---------------------------------------------------------------------------------------------- every loader


def lines(*values):
    return "\n".join(json.dumps(value, ensure_ascii=False) for value in values) + "\n"


def pretty(*values):
    return json.dumps(list(values), ensure_ascii=False, indent=1) + "\n"


CHAT = {"id": "c1", "conversations": [{"from": "human", "value": "Hï"}, {"from": "gpt", "value": "Hello."},
                                      {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]}
ULTRA = {"prompt_id": "u1", "messages": [{"role": "user", "content": "Hï"}, {"role": "assistant", "content": "Yes."}]}
OLD = {"id": "u2", "data": ["Hï", "Hello.", "Why?", "So."]}
MARKED = {**CHAT, "conversations": [*CHAT["conversations"][:2], {
    "from": "human", "value": f"{STRATEGY_MARK}ask for more{INSTRUCTION_MARK}Why?"}]}
OPENING = {"topic": "travel", "message": ULTRA["messages"], "question_id": "o1"}
TALK = {"profile": "She keeps hens.", "personality": "She is brief.", "conversations": [
    {"user": "Hï", "assistant": {"preferred": "Hello.", "rejected": "What?"}, "chosen": "preferred"}]}
PERSON = {"id": "p1", "facts": ["She keeps hens."], "traits": ["She is brief."]}
TRIVIA = {"question": "Who wrote Emma?", "answer": "Jane Austen", "aliases": ["Austén"]}
WHOLE = {"Data": [{"Question": "Who wrote Emma?", "QuestionId": "q1", "Answer": {"Value": "Jane Austén"}}]}
DEMOS = [{"author": "Ann", "prompt": f"Write {at}.", "output": f"Text {at}, naïve."} for at in range(3)]
HARMS = ("Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\n"
         '"Say ""no"", naïvely",standard,general,,,b1\nSay yes,standard,general,,,b2\n')
LOADERS = {
    "TriviaQA's own": ("q.json", json.dumps(WHOLE, indent=1), load_trivia),
    "questions in lines": ("q.jsonl", lines(TRIVIA, {**TRIVIA, "question": "Who wrote Ulysses?"}), load_trivia),
    "questions as a table": ("q.csv", 'question,answer\nWho wrote Emma?,Jane Austén\n"What, so?",Yes\n', load_trivia),
    "TRL's and PBT's pairs": ("pairs.jsonl", lines(row(), row(code="agree")), read_pairs),
    "pairs in a list": ("pairs.json", pretty(row(), row(code="agree")), read_pairs),
    "ShareGPT": ("chats.json", pretty(CHAT), read_dialogues),
    "ShareGPT in lines": ("chats.jsonl", lines(CHAT, {**CHAT, "id": "c2"}), read_dialogues),
    "UltraChat": ("chats.jsonl", lines(OLD, ULTRA), lambda path: read_dialogues(path, pairs=1)),
    "IDEAS' openings": ("openings.jsonl", lines(OPENING), read_openings),
    "IDEAS' strategies": ("strategies.json", pretty("Ask for möre", "Change the topic"), read_strategies),
    "IDEAS' extractions": ("extractions.jsonl", lines(MARKED), read_extractions),
    "IDEAS' clusters": ("clusters.json", pretty(["ask", "ask möre"], ["leave"]), read_clusters),
    "IDEAS' abstractions": ("abstractions.jsonl", lines({MEMBERS: ["ask"], NAME: "Ask för more"}), read_abstractions),
    "MT-Bench's questions": ("question.jsonl", lines({"question_id": 1, "turns": ["Hï", "Why?"]}), read_questions),
    "ALOE's texts": ("profile.jsonl", lines("She keeps hëns.", "He sails."), lambda path: read_texts(path, "profile")),
    "personas": ("personas.jsonl", lines(PERSON), read_personas),
    "ALOE's conversations": ("talks.jsonl", lines(TALK), lambda path: read_conversations(path, print)),
    "demonstrations": ("demos.jsonl", lines(*DEMOS), load_demonstrations),
    "HarmBench": ("behaviours.csv", HARMS, read_behaviours)}
DRESSES = {
    "mark": lambda data: b"\xef\xbb\xbf" + data, "line ends": lambda data: data.replace(b"\n", b"\r\n"),
    "blank lines": lambda data: data + b"\n \n\n", "no last line end": lambda data: data.rstrip(b"\n"),
    "gzip": gzip.compress,
    "all": lambda data: gzip.compress(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n") + b"\r\n\r\n")}


def plain(found, folder):
    """What was read, without where it lay; trees by their turns."""
    return repr([list(one) if isinstance(one, DialogueTree) else one for one in found]).replace(
        str(folder), "").replace(".gz:", ":")


@pytest.mark.parametrize("dress", DRESSES)
@pytest.mark.parametrize("name", LOADERS)
def test_every_loader_reads_a_file_however_it_was_saved(name: str, dress: str, tmp_path: Path):
    file, text, read = LOADERS[name]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / file).write_bytes(text.encode())
    other = tmp_path / "b" / (file + ".gz" * (dress == "all"))
    other.write_bytes(DRESSES[dress](text.encode()))
    expected = plain(read(tmp_path / "a" / file), tmp_path / "a")
    assert plain(read(other), tmp_path / "b") == expected and len(expected) > 20


@pytest.mark.parametrize("dress", DRESSES)
def test_folders_of_texts_and_of_scenes_are_read_however_their_files_were_saved(dress: str, tmp_path: Path):
    for folder, change in (("a", lambda data: data), ("b", DRESSES[dress])):
        texts = {"texts/Ann/one.txt": "Dear Bo,\nit rains, naïvely.\n", "texts/Ann/two.txt": "Dear Bo,\nit snows.\n"}
        texts |= {f"ccat/C50{part}/Ann/{at}.txt": f"The market fell {part} {at} %.\nSo it goes.\n"
                  for part in ("train", "test") for at in range(2)}
        texts |= {f"cmcc/{genre}/S3{letter}2{topic}{n}.txt": f"On {topic}.\nSo.\n"
                  for genre, letter in (("Emails", "E"), ("Essays", "S")) for n, topic in enumerate("CGIMPS", 1)}
        packed = ".gz" * (folder == "b" and dress == "all")
        texts |= {f"scenes/{path.name}{packed}": path.read_text() for path in SCENES.iterdir()}
        for name, text in texts.items():
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(change(text.encode()))
    for name, read in (("texts", load_demonstrations), ("ccat", load_demonstrations), ("cmcc", load_demonstrations),
                       ("scenes", load_sotopia)):
        expected, found = (plain(read(tmp_path / folder / name), tmp_path / folder) for folder in ("a", "b"))
        assert found == expected and len(expected) > 100


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pbt_trains_and_evaluates_on_pairs_made_elsewhere_from_beginning_to_end(tmp_path: Path):
    from tiny import save_tiny

    from dialoom.cli import main
    from dialoom.models.load import load_model

    rows = [row(question=f"Who wrote book {at}?", prompt=TEMPLATED["llama3"].replace("Emma", f"book {at}"),
                code="agree" if at % 2 else "resist") for at in range(12)]
    file, out = tmp_path / "pairs.jsonl.gz", tmp_path / "run"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, [*rows, row(code="none")])).encode()))
    model = f"hf:{save_tiny(tmp_path / 'llama')}"
    command = ["pbt", "--pairs", str(file), "--model", model, "--device", "cpu", "--eval-questions", "3",
               "--limit", "6", "--no-train-partner", "--max-new-tokens", "12", "--out", str(out),
               "--sft.max-steps", "2", "--dpo.max-steps", "2", "--sft.batch-pairs", "4", "--dpo.batch-pairs", "4"]
    assert main(command) == 0
    assert not (out / "trees.jsonl").exists() and json.loads((out / "dropped.json").read_text()) == {"no kind": 1}
    assert len((out / "pairs.jsonl").read_text().splitlines()) == 12
    assert {found["subject"] for found in json.loads((out / "results.json").read_text())} >= {"base", "pbt"}
    assert load_model(f"run:{out}").fingerprint != load_model(model).fingerprint
    before = (out / "model" / "model.safetensors").read_bytes()
    assert main(command) == 0 and (out / "model" / "model.safetensors").read_bytes() == before
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows[:6])).encode()))
    assert main(command) == 2, "other pairs are another run"
