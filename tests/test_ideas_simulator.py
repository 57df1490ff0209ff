"""IDEAS' user simulator: candidates, targets and what of them is trained on, proposals and how they are read."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_model

from dialoom.dialogue import Dialogue, Scenario, Turn
from dialoom.errors import ConfigError, DataError
from dialoom.models.base import Completion, Sampling
from dialoom.models.load import load_model
from dialoom.models.scripted import ScriptedModel
from dialoom.pocket.world.strategies import CLASS_OF, classify_instruction, format_target, parse_target
from dialoom.pocket.world.strategy_tables import FITS
from dialoom.pocket.world.strategy_tables import STRATEGIES as STRATEGY_TABLE
from dialoom.recipes.ideas_simulator import (
    CHOOSE,
    CONTINUE,
    POCKET_CHOOSE,
    POCKET_CONTINUE,
    PlainSimulator,
    Simulator,
    candidates,
    plain_examples,
    read_proposal,
    simulator_view,
    target_examples,
    without_oldest,
)
from dialoom.recipes.ideas_strategies import Record, Strategies
from dialoom.train.rows import example_rows

BRIEF = "Choose.\n{strategies}"
STRATEGIES = Strategies(("Ask for examples", "Ask about cost", "Explore limits"),
                        {"want a case": "Ask for examples", "talk about money": "Ask about cost",
                         "see where it ends": "Explore limits"})


def dialogue(*texts: str, id: str = "d") -> Dialogue:
    """The opening, then answers and questions in turn."""
    turns: list[Turn] = []
    for at, text in enumerate(texts[1:]):
        name = f"{'qa'[at % 2 == 0]}{(at + 1) // 2}"
        turns.append(Turn(name, turns[-1].id if turns else None, ("assistant", "user")[at % 2], text))
    return Dialogue(Scenario(id, texts[0]), tuple(turns))


TEA = dialogue("What is tea?", "A drink.", "Which one, say?", "Mint.", "What does it cost?", "Two coins.")
RECORDS = [Record.of(TEA, "q1", "want a case"), Record.of(TEA, "q2", "Talk  about money")]


def examples(dialogues=(TEA,), records=RECORDS, **settings):
    return target_examples(dialogues, records, STRATEGIES, brief=BRIEF, **settings)


# --- candidates


@given(st.integers(1, 80), st.integers(1, 60), st.integers(0, 5))
def test_candidates_hold_the_true_strategy_once_among_as_many_as_fit(count, size, seed):
    strategies = tuple(f"s{at}" for at in range(count))
    before = list(strategies)
    drawn = candidates("s0", before, size, random.Random(seed))
    assert len(drawn) == min(size, count) == len(set(drawn))
    assert "s0" in drawn and set(drawn) <= set(strategies)
    assert before == list(strategies)
    assert drawn == candidates("s0", before, size, random.Random(seed))


def test_candidates_come_in_random_order():
    strategies = [f"s{at}" for at in range(100)]
    places = Counter(candidates("s3", strategies, 50, random.Random(seed)).index("s3") for seed in range(500))
    assert len(places) > 40
    assert max(places.values()) < 40


def test_candidates_refuse_a_strategy_that_is_not_there():
    with pytest.raises(DataError, match="cannot hold 'new'"):
        candidates("new", ["a", "b"], 2, random.Random(0))


def test_a_list_of_one_strategy_is_a_list_of_one():
    assert candidates("a", ["a"], 50, random.Random(0)) == ["a"]


# --- targets


@given(st.text(min_size=1), st.text(min_size=1))
def test_a_target_is_read_as_it_was_written(strategy, instruction):
    strategy, instruction = " ".join(f"s {strategy}".split()), f"i{instruction}.".strip()
    assert parse_target(format_target(strategy, instruction)) == (strategy, instruction)


@pytest.mark.parametrize(("strategy", "instruction"), [
    ("[ask] (for) {more}", "Which [one]: a {b} or (c)?"),
    ("compare: two things", "strategy: x\ninstruction: y\n\nand more: z"),
])
def test_brackets_colons_and_line_breaks_survive(strategy, instruction):
    assert parse_target(format_target(strategy, instruction)) == (strategy, instruction)


def test_an_example_is_one_record_with_earlier_turns_as_targets():
    found, left_out = examples(size=2)
    assert [one.notes["strategy"] for one in found] == ["Ask for examples", "Ask about cost"]
    assert not left_out
    chat = found[1].chat
    assert [message["role"] for message in chat] == ["system", "user", "assistant", "user", "assistant"]
    assert [message["content"] for message in chat[1:]] == [
        "What is tea?\nA drink.", "strategy: Ask for examples\ninstruction: Which one, say?", "Mint.",
        "strategy: Ask about cost\ninstruction: What does it cost?"]
    listed = chat[0]["content"].removeprefix("Choose.\n").split("\n")
    assert len(listed) == 2 and "- Ask about cost" in listed
    assert found[1].train_on == (4,)


def test_an_example_without_a_known_strategy_before_it_shows_that_turn_plainly():
    found, _ = examples(records=RECORDS[1:])
    assert len(found) == 1
    assert found[0].chat[2]["content"] == "Which one, say?"


def test_examples_are_the_same_for_a_seed_and_other_for_another():
    assert examples(seed=1) == examples(seed=1)
    assert any(examples(seed=1) != examples(seed=seed) for seed in range(2, 6))


def test_records_that_lead_nowhere_are_counted():
    two_in_a_row = dialogue("Hi?", "Yes.", "So?", id="e").then(Turn("q2", "q1", "user", "And?"))
    records = [*RECORDS, Record.of(TEA, "q1", "unheard of"), Record.of(TEA, "q9", "want a case"),
               Record("r", "gone", "q1", "want a case"), Record.of(two_in_a_row, "q2", "want a case")]
    found, left_out = examples([TEA, two_in_a_row], records)
    assert len(found) == 2
    assert left_out == {"strategy belongs to no high-level one": 1, "no such turn": 2, "no answer before it": 1}


def test_examples_beyond_the_context_are_left_out_and_counted():
    model = tiny_model(context=256)
    long = dialogue("What is tea?", "A drink. " * 60, "Which one?", "Mint.", id="long")
    found, left_out = examples([TEA, long], [RECORDS[0], Record.of(long, "q1", "want a case")], model=model)
    assert [one.group for one in found] == ["d"]
    assert left_out == {"too long": 1}


def test_only_the_target_turn_is_trained_on_with_its_end():
    model = tiny_model(context=512)
    found, _ = examples(model=model)
    for example, row in zip(found, example_rows(model, found), strict=True):
        (path,) = row.paths
        (span,) = path.spans
        trained = path.ids[span[0]:span[1]]
        assert model.tokenizer.decode(trained) == example.chat[-1]["content"] + "<|end|>"


def test_the_plain_simulator_learns_the_same_turns_as_they_are():
    plain, _ = plain_examples([TEA], RECORDS, STRATEGIES, brief="Go on.")
    targets, _ = examples()
    assert [one.notes["turn"] for one in plain] == [one.notes["turn"] for one in targets]
    assert plain[1].chat == [
        {"role": "system", "content": "Go on."}, {"role": "user", "content": "What is tea?\nA drink."},
        {"role": "assistant", "content": "Which one, say?"}, {"role": "user", "content": "Mint."},
        {"role": "assistant", "content": "What does it cost?"}]


# --- proposals


@pytest.mark.parametrize(("text", "strategy", "instruction", "reason"), [
    ("strategy: ask ABOUT  cost\ninstruction: How much?", "Ask about cost", "How much?", ""),
    ("strategy: Make a rhyme\ninstruction: Rhyme it.", "Make a rhyme", "Rhyme it.", "off_list"),
    ("instruction: How much?", "", "instruction: How much?", "unparsed"),
    ("strategy: Ask about cost", "", "strategy: Ask about cost", "unparsed"),
    ("", "", "", "unparsed"),
])
def test_a_reply_is_read_or_says_why_not(text, strategy, instruction, reason):
    found = read_proposal(text, STRATEGIES.high)
    assert (found.strategy, found.instruction, found.reason) == (strategy, instruction, reason)


def test_a_reply_that_ended_at_the_length_limit_is_cut():
    class Cut(ScriptedModel):
        def chat(self, chats, sampling, keys):
            return [Completion(one.text, "length") for one in super().chat(chats, sampling, keys)]
    model = Cut(lambda chat: "strategy: Ask about cost\ninstruction: How mu")
    assert Simulator(model).propose([TEA], [STRATEGIES.high], ["k"])[0].reason == "cut"
    assert PlainSimulator(model).propose([TEA], [()], ["k"])[0].reason == "cut"


def test_proposals_of_many_dialogues_are_one_batch_with_their_own_candidates():
    def choose(chat):
        first = chat[0]["content"].rpartition("\n- ")[2]
        return f"strategy: {first}\ninstruction: {chat[-1]['content']} - {first}?"
    model = ScriptedModel(choose)
    other = dialogue("What is rye?", "A grain.", id="e")
    found = Simulator(model, brief=BRIEF).propose([TEA, other, other], [["a"], ["b"], ["c"]], ["1", "2", "3"])
    assert [(one.strategy, one.instruction) for one in found] == [
        ("a", "Two coins. - a?"), ("b", "What is rye?\nA grain. - b?"), ("c", "What is rye?\nA grain. - c?")]
    assert not any(one.reason for one in found)


def test_noted_strategies_are_shown_as_targets_and_the_dialogue_stays_as_it_is():
    turns = [TEA.turns[0], Turn("q1", "a0", "user", "Which one?", {"strategy": "Ask for examples"}), *TEA.turns[2:]]
    noted = Dialogue(TEA.scenario, tuple(turns))
    chat = simulator_view(noted, "user", "B")
    assert chat[2]["content"] == "strategy: Ask for examples\ninstruction: Which one?"
    assert chat[4]["content"] == "What does it cost?"
    assert noted.turns[1].text == "Which one?"


def test_histories_that_are_too_long_lose_their_oldest_pairs():
    seen = []
    model = tiny_model(context=256)
    model.chat = lambda chats, sampling, keys: seen.extend(chats) or [Completion("x") for _ in chats]
    texts = [part for at in range(12) for part in (f"Question number {at}?", f"The answer is {at}.")]
    found = Simulator(model, Sampling(max_new_tokens=40), BRIEF).propose([dialogue(*texts)], [["a"]], ["k"])
    dropped = found[0].dropped
    assert 0 < dropped < 11
    assert seen[0][0]["content"] == "Choose.\n- a"
    assert seen[0][1]["content"] == f"Question number {dropped}?\nThe answer is {dropped}."
    assert len(model.template.prompt(seen[0])) + 40 <= 256
    assert model.truncated == 0


def test_dropping_pairs_makes_a_later_question_the_opening():
    assert without_oldest(TEA, 0) is TEA
    later = without_oldest(TEA, 2)
    assert later.scenario.opening == "What does it cost?"
    assert [turn.text for turn in later.turns] == ["Two coins."]
    with pytest.raises(DataError, match="cannot drop 3 pairs"):
        without_oldest(TEA, 3)


def test_a_brief_without_a_place_for_candidates_is_refused():
    with pytest.raises(ConfigError, match="no place for the candidates"):
        Simulator(ScriptedModel(lambda chat: ""), brief="Choose well.")
    with pytest.raises(ConfigError, match="no place for the candidates"):
        target_examples([TEA], RECORDS, STRATEGIES, brief="Choose well.")


def test_the_fingerprint_follows_all_that_decides_a_proposal():
    one, other = ScriptedModel(lambda chat: "", "one"), ScriptedModel(lambda chat: "", "other")
    simulators = [Simulator(one), Simulator(other), Simulator(one, Sampling()), Simulator(one, brief=BRIEF),
                  PlainSimulator(one), PlainSimulator(one, brief=POCKET_CONTINUE)]
    assert len({simulator.fingerprint for simulator in simulators}) == len(simulators)
    assert Simulator(one).fingerprint == Simulator(one).fingerprint


def test_the_briefs_ask_for_the_shared_format():
    for words in ("strategy: ", "instruction: ", "{strategies}"):
        assert words in CHOOSE
    assert "strateg" not in CONTINUE


def test_pocket_names_a_strategy_and_writes_by_it_the_same_whatever_the_batch():
    pocket = load_model("pocket")
    listed = [STRATEGY_TABLE[name][0] for name in FITS["definition"]]
    simulator = Simulator(pocket, brief=POCKET_CHOOSE)
    others = [dialogue("What is cider?", "Cider is a kind of drink.", id="c"),
              dialogue("What is a harp?", "A harp is a kind of instrument.", id="h")]
    both = simulator.propose(others, [listed, listed], ["1", "2"])
    assert both[1:] == simulator.propose(others[1:], [listed], ["2"])
    sixteen = simulator.propose(others * 8, [listed] * 16, list(map(str, range(16))))
    assert sum(one.reason in ("", "off_list") for one in sixteen) >= 14
    assert sum(classify_instruction(one.instruction) == CLASS_OF.get(one.strategy) for one in sixteen) >= 12
