"""Social scenes in Sotopia's layout: who knows what of whom, and files with bad rows. The data set is invented."""

import gzip
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialoom.errors import DataError
from dialoom.recipes.dat import data_hash
from dialoom.recipes.dat_config import DatConfig
from dialoom.scenarios.sotopia import ENDS, FILES, LEAVES, load_sotopia, read_sotopia

DATA = Path(__file__).parent / "data" / "sotopia"
PERSON = {"first_name": "Ada", "last_name": "Quill", "age": 41, "gender": "Woman", "gender_pronoun": "She/her",
          "occupation": "boat builder", "public_info": "Ada has two geese.",
          "personality_and_values": "Ada is patient.", "secret": "Ada cannot swim."}
OTHER = {"pk": "ben", "first_name": "Ben", "last_name": "Tarn", "secret": "Ben copies."}
PLACE = {"pk": "e", "scenario": "A pier.", "agent_goals": ["Sell.", "Buy."], "relationship": 0}
PAIR = {"pk": "c", "env_id": "e", "agent_ids": ["ada", "ben"]}


def folder_of(path, environments=(PLACE,), characters=({"pk": "ada", **PERSON}, OTHER), combinations=(PAIR,)):
    """A folder with one file of each kind; text is written as it is."""
    for name, rows in (("envs", environments), ("agents", characters), ("env_agent_combos", combinations)):
        text = rows if isinstance(rows, str) else json.dumps(rows)
        (path / f"{name}.json").write_text(text, encoding="utf-8")
    return path


def by_id(scenes):
    return {scene.id: scene for scene in scenes}


def test_goals_and_secrets_are_private_and_marked_parts_reach_their_viewer_only():
    scene = by_id(load_sotopia(DATA))["boat-1"]
    first, second = scene.briefs["first"], scene.briefs["second"]
    assert scene.opening == "Two people stand beside an old rowing boat that is for sale. It is raining."
    assert "Sell the boat for 200 or more (you paid 150)" in first and "Sell the boat" not in second + scene.opening
    assert "Buy the boat for at most 180" in second and "Buy the boat" not in first
    assert "leaks at the stern" in first and "leaks" not in second
    assert "cannot swim" in first and "cannot swim" not in second
    assert "copies his recipes" in second and "copies his recipes" not in first
    assert all(LEAVES in brief and "<" not in brief for brief in (first, second))
    assert "leaks at the stern" in scene.facts["scene"]  # a judge sees all of it
    assert "cannot swim" in scene.facts["characters"][0]["background"]


@pytest.mark.parametrize(("level", "known"), [
    (0, ()), (1, ("Ada Quill",)),
    (2, ("Ada Quill", "41", "Woman", "She/her", "boat builder", "two geese")),
    (3, ("Ada Quill", "41", "Woman", "She/her", "boat builder", "two geese", "patient")),
    (4, ("Ada Quill", "41", "Woman", "She/her", "boat builder", "two geese", "patient")),
    (5, ("Ada Quill", "41", "Woman", "She/her", "boat builder", "two geese", "patient"))])
def test_what_one_knows_of_the_other_depends_on_the_relationship_and_the_secret_is_never_known(tmp_path, level, known):
    scene, = load_sotopia(folder_of(tmp_path, environments=[{**PLACE, "relationship": level}]))
    brief = scene.briefs["second"]
    everything = ("Ada Quill", "41", "Woman", "She/her", "boat builder", "two geese", "patient", "cannot swim")
    assert {one for one in everything if one in brief} == set(known)
    assert ("You do not know the other person." in brief) is (level == 0)
    assert {one for one in everything if one in scene.briefs["first"]} == set(everything)


def test_a_personality_that_is_not_written_out_is_made_of_its_values():
    brief = by_id(load_sotopia(DATA))["stage-1"].briefs["second"]  # Ada meets her friend Ben
    assert "Extraversion: high; Loyalty; Hedonism" in brief and "Intuitive" not in brief


def test_bad_rows_are_named_by_file_and_line_counted_and_cost_only_what_needs_them():
    told = []
    scenes = load_sotopia(DATA, tell=told.append)
    assert list(by_id(scenes)) == ["boat-1", "boat-2", "garden-1", "stage-1"]
    text = "\n".join(told)
    for place in ("environments.json:12: expected agent_goals", "environments.json:13: expected relationship",
                  "environments.json: 3 environments read, 2 rows left out", "characters.jsonl:3: expected first_name",
                  "characters.jsonl:4: expected a JSON object", "characters.jsonl:5: pk 'ben' was used before",
                  "characters.jsonl: 2 characters read, 3 rows left out", "combinations.jsonl:5: env_id 'env-broken'",
                  "combinations.jsonl:6: character 'nameless'", "combinations.jsonl:7: expected two different",
                  "combinations.jsonl:8: pk 'boat-1' was used before", "combinations.jsonl:9: expected an object",
                  "combinations.jsonl: 4 combinations read, 5 rows left out"):
        assert place in text, place
    assert by_id(scenes)["boat-1"].facts["environment"] == "env-boat"
    assert by_id(scenes)["boat-1"].facts["relationship"] == "strangers"


def test_a_list_lines_and_an_object_by_pk_give_the_same_scenes(tmp_path):
    people = [{"pk": "ada", **PERSON}, OTHER]
    expected = load_sotopia(folder_of(tmp_path, characters=people))
    lines = "\ufeff" + "\r\n".join(map(json.dumps, people)) + "\n\n"
    keyed = json.dumps({"ada": PERSON, "ben": {name: value for name, value in OTHER.items() if name != "pk"}}, indent=1)
    for text in (lines, keyed):
        assert load_sotopia(folder_of(tmp_path, characters=text)) == expected


def test_the_published_names_of_files_and_keys_are_read(tmp_path):
    def keyed(row, name):
        return {name if field == "pk" else field: value for field, value in row.items()}

    expected = load_sotopia(folder_of(tmp_path))
    published = tmp_path / "profiles"
    published.mkdir()
    for name, rows in (("environment_profiles", [keyed({**PLACE, "relationship": "0"}, "env_id")]),
                       ("agent_profiles", [keyed({"pk": "ada", **PERSON}, "agent_id"), keyed(OTHER, "agent_id")]),
                       ("env_agent_combo_storages", [keyed(PAIR, "combo_id")])):
        (published / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (published / "relationship_profiles.jsonl").write_text("{}\n")  # lies beside them and is not asked for
    assert load_sotopia(published) == expected and expected[0].id == "c"


@pytest.mark.parametrize("end", ENDS)
def test_scenes_that_changed_are_other_data_to_a_run_however_they_are_saved(tmp_path, end):
    def hashed(secret):
        folder_of(tmp_path, characters=[{"pk": "ada", **PERSON, "secret": secret}, OTHER])
        for path in list(tmp_path.glob("*.json")):
            data = path.read_bytes()
            path.unlink()
            saved = tmp_path / f"{path.stem}{end}"
            saved.write_bytes(gzip.compress(data, mtime=0) if end.endswith(".gz") else data)
        found = data_hash(DatConfig(data=str(tmp_path), partner="pocket", judge="pocket"))
        assert load_sotopia(tmp_path)
        for path in tmp_path.glob(f"*{end}"):
            path.unlink()
        return found

    assert hashed("Ada cannot swim.") == hashed("Ada cannot swim.") != hashed("Ada cannot read.")


def test_a_file_that_breaks_off_keeps_what_was_good(tmp_path):
    told = []
    text = json.dumps([PAIR, {**PAIR, "pk": "d", "agent_ids": ["ben", "ada"]}], indent=1)[:-20]
    scenes = load_sotopia(folder_of(tmp_path, combinations=text), tell=told.append)
    assert list(by_id(scenes)) == ["c"] and "broken from here on" in told[0] and ":10: " in told[0]


@pytest.mark.parametrize("mark", ["<p viewer='agent_0'>It leaks. Now 5 < 6.</p>", "<p viewer='agent_0'>It leaks.",
                                  '<p viewer="agent_0">It leaks.</q>'])
def test_a_private_part_that_is_not_closed_spoils_its_row_and_is_not_shown(tmp_path, mark):
    told = []
    broken = {**PLACE, "pk": "x", "scenario": f"A pier. {mark}"}
    scenes = load_sotopia(folder_of(tmp_path, environments=[PLACE, broken],
                                    combinations=[PAIR, {**PAIR, "pk": "d", "env_id": "x"}]), tell=told.append)
    assert list(by_id(scenes)) == ["c"] and "not closed" in told[0]


def test_a_mark_without_quotes_or_for_nobody_here_hides_too_and_nested_marks_are_read(tmp_path):
    scene = "A pier.<p viewer=agent_1>Sold <b>yesterday</b>.</p> <p viewer='environment'>Storm.</p> <i>Wind</i>, 5 < 6."
    found, = load_sotopia(folder_of(tmp_path, environments=[{**PLACE, "scenario": scene}]))
    assert found.opening == "A pier. Wind, 5 < 6."
    assert "Sold yesterday." in found.briefs["second"] and "Sold" not in found.briefs["first"]
    assert "Storm" not in "".join(found.briefs.values()) and "Storm." in found.facts["scene"]


def test_files_that_give_no_scene_say_which_and_why(tmp_path):
    folder_of(tmp_path, characters=[])
    with pytest.raises(DataError, match=r"agents\.json: no characters there that can be used \(the file is empty\)"):
        load_sotopia(tmp_path)
    with pytest.raises(DataError, match=r"envs\.json:1: no scenario"):
        load_sotopia(folder_of(tmp_path, environments=[{"pk": "e", **{k: PLACE[k] for k in ("agent_goals",)},
                                                        "relationship": 1}]))
    with pytest.raises(DataError, match="cannot be read"):
        read_sotopia(tmp_path / "gone.json", DATA / "characters.jsonl", DATA / "combinations.jsonl")
    (tmp_path / "envs.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"found envs\.json and envs\.jsonl"):
        load_sotopia(tmp_path)
    for name in FILES["environments"]:
        for path in tmp_path.glob(f"{name}.*"):
            path.unlink()
    with pytest.raises(DataError, match=r"one file of environments, named environments or .* found none"):
        load_sotopia(tmp_path)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                    max_leaves=6)
FIELDS = st.sampled_from(["pk", "scenario", "agent_goals", "relationship", "first_name", "age", "secret", "env_id",
                          "agent_ids", "moral_values"])


@settings(deadline=None)
@given(bad=st.lists(JSON | st.dictionaries(FIELDS, JSON, max_size=6), max_size=4), cut=st.integers(0, 60))
def test_no_rows_and_no_cut_break_the_reader_or_cost_a_good_row(tmp_path_factory, bad, cut):
    path = tmp_path_factory.mktemp("scenes")
    folder_of(path, [PLACE, *bad], [{"pk": "ada", **PERSON}, OTHER, *bad], [PAIR, *bad])
    assert "c" in by_id(load_sotopia(path))
    file = path / "env_agent_combos.json"
    file.write_text(file.read_text(encoding="utf-8")[:cut], encoding="utf-8")
    try:
        load_sotopia(path)
    except DataError as wrong:
        assert str(file) in str(wrong)
    finally:
        shutil.rmtree(path)
