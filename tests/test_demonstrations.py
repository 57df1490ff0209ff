"""Demonstrations out of files and folders: splits, prompts, what is wrong and where."""

import json
from collections import Counter
from email.message import EmailMessage

import pytest

from dialoom.errors import ConfigError, DataError
from dialoom.pocket.world import styles
from dialoom.scenarios.demonstrations import (
    first_sentence,
    load_demonstrations,
    pocket_demonstrations,
    read_text,
    shared_out,
)


def jsonl(tmp_path, *rows, name="demos.jsonl"):
    path = tmp_path / name
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    return path


def row(n, **more):
    return {"prompt": f"Write note {n}.", "output": f"Here is note {n}, bye", **more}


def splits(demos):
    return Counter(demo.split for demo in demos)


def test_rows_keep_their_authors_splits_and_places(tmp_path):
    path = jsonl(tmp_path, row(1, author="Ada", split="train"), row(2, author="Ada", split="val"),
                 row(3, author="Bo", split="test"), row(4, author="Bo", split="train"))
    found = load_demonstrations(path)
    assert [(demo.author, demo.split) for demo in found] == [("Ada", "train"), ("Ada", "validation"), ("Bo", "test"),
                                                             ("Bo", "train")]
    assert found[2].where == f"{path}:3" and found[0].chat == [{"role": "user", "content": "Write note 1."}]


@pytest.mark.parametrize(("count", "expected"), [
    (1, {"train": 1}), (2, {"train": 1, "test": 1}), (3, {"train": 2, "test": 1}),
    (7, {"train": 4, "validation": 1, "test": 2}), (10, {"train": 6, "validation": 1, "test": 3}),
    (20, {"train": 14, "validation": 3, "test": 3})])
def test_rows_without_a_split_are_shared_out_by_their_content(tmp_path, count, expected):
    rows = [row(n) for n in range(count)]
    found = load_demonstrations(jsonl(tmp_path, *rows))
    assert splits(found) == expected and {demo.author for demo in found} == {"you"}
    again = load_demonstrations(jsonl(tmp_path, *reversed(rows)))
    assert {demo.output: demo.split for demo in again} == {demo.output: demo.split for demo in found}


def test_texts_on_one_task_are_never_both_learned_and_held_out(tmp_path):
    rows = [{"prompt": f"Write note {n % 9}.", "output": f"Note {n}"} for n in range(30)]
    found = load_demonstrations(jsonl(tmp_path, *rows))
    by_task = {}
    for demo in found:
        by_task.setdefault(demo.prompt, set()).add(demo.split)
    assert all(len(names) == 1 for names in by_task.values())
    assert Counter(names.pop() for names in by_task.values()) == {"train": 5, "validation": 1, "test": 3}
    alone = load_demonstrations(jsonl(tmp_path, *({"prompt": "Write.", "output": f"Note {n}"} for n in range(9))))
    assert splits(alone) == {"train": 9}, "one task leaves nothing to hold out"


def test_several_texts_on_one_task_are_all_kept(tmp_path):
    found = load_demonstrations(jsonl(tmp_path, {"prompt": "Say hi.", "output": "hi!", "split": "train"},
                                      {"prompt": "Say hi.", "output": "hello", "split": "train"}))
    assert [demo.output for demo in found] == ["hi!", "hello"] and found[0].scenario.id != found[1].scenario.id


def test_a_prompt_may_be_a_list_of_messages(tmp_path):
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Now a poem."}]
    demo, = load_demonstrations(jsonl(tmp_path, {"prompt": messages, "output": "Roses"}))
    assert demo.chat == messages
    scenario = demo.scenario
    assert scenario.opening == "Hi" and scenario.briefs == {"writer": "Be kind."}
    assert scenario.facts["before"] == [["assistant", "Hello"], ["user", "Now a poem."]]


@pytest.mark.parametrize(("rows", "message"), [
    ([row(1), {"prompt": "Write."}], r"demos.jsonl:2: no output; expected the keys prompt and output"),
    ([{"prompt": "Write.", "text": "hi"}], r"demos.jsonl:1: no output; .* found text"),
    ([{"prompt": "Write.", "output": None}], r"demos.jsonl:1: expected output to be text, found nothing"),
    ([{"prompt": "Write.", "output": "  "}], r"demos.jsonl:1: expected output to be text"),
    ([{"prompt": 3, "output": "x"}], r"demos.jsonl:1: expected prompt to be text, found int"),
    ([row(1), b'{"prompt": "a", "output": "caf\xe9"}'], r"demos.jsonl:2: byte 31 is not UTF-8"),
    ([b"prompt,output"], r"demos.jsonl:1: expected a JSON object, found 'prompt,output'"),
    ([b"[1]"], r"demos.jsonl:1: expected a JSON object with prompt and output, found list"),
    ([row(1, split="dev set")], r"demos.jsonl:1: expected split to be train, validation or test, found 'dev set'"),
    ([row(1, split="train"), row(2)], r"demos.jsonl:2: this row of you names no split, line 1 does"),
    ([row(1, split="test")], r"none of its 1 texts is for training"),
    ([{"prompt": [{"role": "assistant", "content": "x"}], "output": "y"}], r"demos.jsonl:1: expected user and assist"),
    ([{"prompt": [{"role": "bot", "content": "x"}], "output": "y"}], r"demos.jsonl:1: expected messages with role"),
    ([], r"demos.jsonl: is empty; expected one object a line"),
])
def test_a_bad_row_is_named_by_file_and_line(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        load_demonstrations(jsonl(tmp_path, *rows))


def test_all_bad_rows_are_named_at_once(tmp_path):
    with pytest.raises(DataError, match=r"jsonl:1: .*jsonl:3: .*and 2 more lines like these"):
        load_demonstrations(jsonl(tmp_path, {"a": 1}, row(2), *[{"a": 1}] * 6))


def test_utf_16_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(row(1)), encoding="utf-16")
    with pytest.raises(DataError, match=r"d.jsonl:1: expected UTF-8, found the start of a UTF-16 file"):
        load_demonstrations(path)
    with pytest.raises(DataError, match="no such file or folder"):
        load_demonstrations(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="did you mean jsonl"):
        load_demonstrations(path, "jsnl")
    with pytest.raises(DataError, match="layout texts is a folder"):
        load_demonstrations(path, "texts")


def test_a_folder_of_texts_becomes_tasks_and_texts(tmp_path):
    for n in range(6):
        (tmp_path / f"mail{n}.txt").write_text(f"Dear all,\nnumber {n} of my long and winding mails.\nCheers")
    (tmp_path / "mail10.txt").write_text("Subject: Friday\nSee you then!")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    told = []
    found = load_demonstrations(tmp_path, tell=told.append)
    assert len(found) == 7 and {demo.author for demo in found} == {"you"}
    assert told == [f"{tmp_path}: left out (picture.png); expected files ending in .txt, .md, .text, .eml, in this "
                    "folder or in one for each author"]
    subject = next(demo for demo in found if "Friday" in demo.chat[0]["content"])
    assert subject.output == "See you then!" and found[-1] is subject, "files in the order a person would give them"
    assert found[0].chat[0]["content"] == "Write a text that begins with “Dear all, number 0 of my long and …”."
    assert found[0].output.startswith("Dear all,\nnumber 0")


def mail(text, subject="Grüße", **content):
    made = EmailMessage()
    made["From"], made["Received"] = "jo@example.org", "from far away"
    if subject:
        made["Subject"] = subject
    made.set_content(text, **content)
    return made


def test_of_an_e_mail_only_subject_and_plain_text_are_taken(tmp_path):
    whole = mail("Hällo,\nsee you.\n", cte="base64")
    whole.add_alternative("<p>Hällo</p>", subtype="html")
    whole.add_attachment(b"PK", maintype="application", subtype="zip", filename="x.zip")
    (tmp_path / "1.eml").write_bytes(whole.as_bytes())
    (tmp_path / "2.eml").write_bytes(mail("A mail without a subject line in it is this one", subject="").as_bytes())
    (tmp_path / "3.eml").write_bytes(b"Subject: Old\r\n\r\ngr\xfc\xdfe\r\n")
    (tmp_path / "4.eml").write_bytes(mail("<p>Hi</p>", subtype="html").as_bytes())
    told = []
    found = load_demonstrations(tmp_path, tell=told.append)
    assert [(demo.chat[0]["content"], demo.output) for demo in found] == [
        ("Write an e-mail with the subject “Grüße”.", "Hällo,\nsee you."),
        ("Write a text that begins with “A mail without a subject line in it …”.",
         "A mail without a subject line in it is this one"),
        ("Write an e-mail with the subject “Old”.", "grüße")]
    assert [line.partition(": ")[2][:20] for line in told] == ["not UTF-8; the file ", "left out; the e-mail"]


@pytest.mark.parametrize("head", ["text/plain; charset=klingon", "text/plain; charset=undefined"])
def test_an_e_mail_that_cannot_be_read_is_refused_by_name(tmp_path, head):
    (tmp_path / "a.eml").write_text(f"Subject: x\nContent-Type: {head}\n\nhello")
    with pytest.raises(DataError, match=r"a.eml: no e-mail that can be read .* save its text as .txt"):
        load_demonstrations(tmp_path)


def test_a_folder_for_each_author_is_an_author_each(tmp_path):
    for author in ("Ada", "Bo"):
        (tmp_path / author).mkdir()
        for n in range(3):
            (tmp_path / author / f"{n}.md").write_text(f"{author} writes {n}")
    assert Counter(demo.author for demo in load_demonstrations(tmp_path)) == {"Ada": 3, "Bo": 3}


def test_encodings_are_found_out_and_an_odd_one_is_told(tmp_path):
    told = []
    for name, data in {"a": "grüße".encode(), "b": b"\xef\xbb\xbfgr\xc3\xbc\xc3\x9fe", "c": "grüße".encode("utf-16"),
                       "d": b"x\ngr\xfc\xdfe"}.items():
        (tmp_path / f"{name}.txt").write_bytes(data)
    texts = [read_text(tmp_path / f"{name}.txt", told.append) for name in "abcd"]
    assert texts == ["grüße", "grüße", "grüße", "x\ngrüße"]
    assert told == [f"{tmp_path / 'd.txt'}:2: not UTF-8; the file is read as Windows-1252"]


@pytest.mark.parametrize(("data", "message"), [(b" \n", "is empty"), (b"a\0b", "NUL characters")])
def test_empty_and_binary_text_files_are_refused(tmp_path, data, message):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DataError, match=message):
        load_demonstrations(tmp_path)


def test_a_folder_without_texts_is_refused_and_what_is_in_it_named(tmp_path):
    with pytest.raises(DataError, match="no text files there; expected"):
        load_demonstrations(tmp_path)
    for n in range(7):
        (tmp_path / f"letter{n}.docx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"no text files there \(letter0.docx, .*letter4.docx and 2 more\); expected"):
        load_demonstrations(tmp_path)


def test_cmcc_gives_twelve_texts_of_an_author_in_seven_two_three(tmp_path):
    for genre, letter in (("Emails", "E"), ("Essays", "S")):
        folder = tmp_path / genre / "Correlated"
        folder.mkdir(parents=True)
        for n, topic in enumerate("CGIMPS", 1):
            (folder / f"S3{letter}2{topic}{n}.txt").write_bytes(f"{genre} on {topic} \x93ok\x94".encode("latin-1"))
    (tmp_path / "Emails" / "Correlated" / "S3X.txt").write_text("?")
    told = []
    found = load_demonstrations(tmp_path, tell=told.append)
    assert splits(found) == {"train": 7, "validation": 2, "test": 3} and {demo.author for demo in found} == {"S3"}
    essay = next(demo for demo in found if demo.output == "Essays on M “ok”")
    assert "essay of about 500 words" in essay.chat[0]["content"] and "marijuana" in essay.chat[0]["content"]
    assert any("S3X.txt: left out" in line for line in told)


def test_ccat50_trains_on_four_fifths_and_tests_on_the_other_folder(tmp_path):
    for part in ("C50train", "C50test"):
        folder = tmp_path / part / "AlanCrosby"
        folder.mkdir(parents=True)
        for n in range(50):
            (folder / f"{n}newsML.txt").write_text(f"Shares rose {n} percent on Monday.\nTraders said {part} was fine.")
    found = load_demonstrations(tmp_path)
    assert splits(found) == {"train": 40, "validation": 3, "test": 3}
    one = next(demo for demo in found if demo.split == "test")
    assert "C50test" in one.output and "\n" not in one.output
    assert one.chat[0]["content"].endswith(one.output.split(" Traders")[0])


@pytest.mark.parametrize(("text", "sentence"), [
    ("Mr. Smith of the U.S. Treasury spoke. Others listened.", "Mr. Smith of the U.S. Treasury spoke."),
    ("No end here", "No end here"), ("Is it so?\nIt is.", "Is it so?")])
def test_the_first_sentence_of_an_article(text, sentence):
    assert first_sentence(text) == sentence


def test_pocket_ships_twelve_authors_with_seven_three_and_three_texts():
    found = pocket_demonstrations()
    assert len({demo.author for demo in found}) == 12 and not {demo.author for demo in found} & set(
        styles.VALIDATION_AUTHORS)
    assert splits(found) == {"train": 84, "validation": 36, "test": 36}
    with pytest.raises(ConfigError, match="did you mean Alma"):
        pocket_demonstrations(["Almma"])


def test_sharing_out_changes_no_text():
    demos = pocket_demonstrations(["Alma"])
    assert [demo.output for demo in shared_out(demos)] == [demo.output for demo in demos]
