"""Personas and their files: both layouts are read, every bad line is named and costs no good one."""

import json

import pytest

from dialoom.errors import ConfigError, DataError
from dialoom.pocket.world.personas import make_personas
from dialoom.scenarios import persona_seeds
from dialoom.scenarios.personas import (
    Persona,
    combine,
    from_world,
    read_entries,
    read_personas,
    read_texts,
    sentences,
    with_pronoun,
    write_personas,
    write_texts,
)


def write(path, *lines, end="\n"):
    path.write_bytes(("\n".join(lines) + end).encode("utf-8", "surrogateescape"))
    return path


# ------------------------------------------------------------------------------------------------ the layouts


def test_two_strings_on_one_line_are_two_texts(tmp_path):
    lines = '"She keeps hens."', '"He sails." "He bakes."', '"She\\nsings.", "He rows."'
    path = write(tmp_path / "profile.jsonl", *lines, end="")
    assert read_texts(path, "profile") == ["She keeps hens.", "He sails.", "He bakes.", "She sings.", "He rows."]
    assert [entry.where.rsplit(":", 1)[1] for entry in read_entries(path)] == ["1", "2", "2", "3", "3"]


def test_our_layout_reads_back_what_was_written(tmp_path):
    people = combine(persona_seeds.PROFILES, persona_seeds.PERSONALITIES, 3, seed=1)
    write_personas(tmp_path / "personas.jsonl", people)
    assert read_personas(tmp_path / "personas.jsonl") == people
    assert read_texts(tmp_path / "personas.jsonl", "profile") == list(persona_seeds.PROFILES)
    write_texts(tmp_path / "profile.jsonl", ['Says "no".', "Ünïcode\u2028 here."])
    assert read_texts(tmp_path / "profile.jsonl", "profile") == ['Says "no".', "Ünïcode here."]


def test_records_of_conversations_hold_raw_lines_of_the_files_they_came_from(tmp_path):
    row = {"profile": '"He sails. He bakes."\n', "personality": '"Never hurries."\n', "conversations": []}
    path = write(tmp_path / "conversations.jsonl", json.dumps(row))
    persona, = read_personas(path)
    assert (persona.facts, persona.traits) == (("He sails.", "He bakes."), ("Never hurries.",))


GOOD = '{"id": "a", "facts": ["She keeps hens."], "traits": ["Never hurries."]}'


@pytest.mark.parametrize(("line", "wrong"), [
    ('{"id": "b", "facts": ["She', "not JSON"),
    ('{"id": "b", "facts": [], "traits": ["Loud."]}', "without facts"),
    ('{"id": "b", "traits": ["Loud."]}', "without facts"),
    ('{"id": "b", "facts": ["She rows."]}', "without traits"),
    ('{"id": "b", "facts": ["She rows."], "traits": "  "}', "traits: is empty|personality: is empty"),
    ('{"id": "b", "facts": ["She rows.", 3], "traits": ["Loud."]}', "found int"),
    ('{"id": ["b"], "facts": ["She rows."], "traits": ["Loud."]}', "id "),
    ('{"id": "a", "facts": ["She rows."], "traits": ["Loud."]}', "same id as .*:1"),
    ('{"id": "b", "facts": ["She keeps hens."], "traits": ["Never hurries."]}', "same person as .*:1"),
    ('{"name": "Ann"}', "found the fields name"),
    ('"She rows."', "plain string"),
    ("[1, 2]", "found list"),
    ('{"facts": ["She \udcff rows."], "traits": ["Loud."]}', "not text"),
    ('{"facts": ["' + "x" * 6000 + '"], "traits": ["Loud."]}', "over 5,000 characters"),
    ("[" * 100_000, "not JSON|nested"),
])
def test_a_bad_line_is_named_counted_and_survived(tmp_path, line, wrong):
    path = write(tmp_path / "personas.jsonl", GOOD, line, GOOD.replace('"a"', '"c"').replace("hens", "bees"))
    bad = []
    assert [one.id for one in read_personas(path, on_bad=bad.append)] == ["a", "c"]
    assert len(bad) == 1 and bad[0].startswith(f"{path}:2: ")
    with pytest.raises(DataError, match=f"personas.jsonl:2: .*({wrong})"):
        read_personas(path)


def test_a_text_that_is_there_twice_counts_once(tmp_path):
    path = write(tmp_path / "profile.jsonl", '"He sails."', '"He  sails."', '{"traits": ["Loud."]}')
    bad = []
    assert read_texts(path, "profile", on_bad=bad.append) == ["He sails."]
    assert "the same profile as" in bad[0] and "no profile" in bad[1] and len(bad) == 2


@pytest.mark.parametrize("content", ["", "\n\n", "{"])
def test_a_file_with_nothing_usable_is_an_error(tmp_path, content):
    with pytest.raises(DataError, match="nothing usable"):
        read_texts(write(tmp_path / "profile.jsonl", content), "profile", on_bad=lambda message: None)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl: cannot be read"):
        read_personas(tmp_path / "nowhere.jsonl")


# ------------------------------------------------------------------------------------------------- the people


def test_sentences_end_where_a_reader_ends_them():
    text = 'He is Dr. Ito. "Why not?" he asks. J. R. lives in St. Ives! He is 5. Eats  at 6.30.'
    assert sentences(text) == ("He is Dr. Ito.", '"Why not?" he asks.', "J. R. lives in St. Ives!", "He is 5.",
                               "Eats at 6.30.")
    assert sentences("  ") == ()


def test_each_profile_meets_other_personalities_in_each_pass():
    profiles, personalities = [f"She is {age}." for age in range(331)], [f"Likes {at}." for at in range(70)]
    people = combine(profiles, personalities, 10, seed=1)
    assert len(people) == 3310 and len({one.id for one in people}) == 3310
    assert [one.profile for one in people[:331]] == profiles
    assert all(len({one.personality for one in people if one.profile == profile}) == 10 for profile in profiles[:20])
    assert combine(profiles, personalities, 10, seed=1) == people != combine(profiles, personalities, 10, seed=2)
    again = combine(profiles[::-1], personalities, 10, seed=1)
    assert {one.id for one in again} == {one.id for one in people}
    with pytest.raises(ConfigError, match="71 passes"):
        combine(profiles, personalities, 71, seed=1)


def test_pronouns_follow_the_profile():
    assert with_pronoun("She is calm. People trust her and her word. It suits her.", "He") == (
        "He is calm. People trust him and his word. It suits him.")
    assert with_pronoun("He likes his jokes. They cheer him up.", "She") == "She likes her jokes. They cheer her up."
    assert with_pronoun("Never hurries. Gives her time.", "He") == "Never hurries. Gives her time."  # of no one said
    assert combine(["She rows."], ["He is calm."], 1, seed=0)[0].text == "She rows. She is calm."


def test_people_of_pockets_world_are_these_and_back():
    for person in make_personas(50, 1, "eval"):
        persona = from_world(person)
        assert persona.world == person and persona.id == person.id and persona.text == person.text
    free = Persona.of(persona_seeds.PROFILES[0], persona_seeds.PERSONALITIES[0])
    assert not free.world.traits


def test_a_persona_needs_facts_and_traits():
    with pytest.raises(DataError, match="without facts"):
        Persona.of(" ", "Loud.")
    with pytest.raises(DataError, match="without traits"):
        Persona.of("She rows.", "")


def test_the_seeds_are_forty_four_different_people_and_tell_only_their_own_kind():
    assert len(set(persona_seeds.PROFILES)) == len(set(persona_seeds.PERSONALITIES)) == 22
    for profile in persona_seeds.PROFILES:
        assert len(sentences(profile)) >= 6 and profile.startswith(("She is", "He is"))
    for personality in persona_seeds.PERSONALITIES:
        assert len(sentences(personality)) >= 5 and with_pronoun(personality, "He") == personality
