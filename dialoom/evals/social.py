"""Does a speaker reach its goal in a scene with somebody else? Scenes in every role, in lock-step, and their judges.

`SocialJudge` asks any model for Sotopia's seven dimensions, `SceneJudge` computes pocket's exact reward. Either judges
the subject of a scene, at its end only. The surprising choices: a subject that falls silent has lost the scene, so that
silence wins nothing; and in pocket's scenes only the one who wants something is measured, since whoever just refuses
everything would be perfect in the other role.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from dialoom.dialogue import Chat, Dialogue, DialogueTree, Scenario, Turn, content_id
from dialoom.errors import ConfigError, DataError
from dialoom.evals.metrics import Row
from dialoom.evals.persuasion import Log, Result
from dialoom.evals.quality import mean_row
from dialoom.judge import Judge, Verdict, ask_until_read
from dialoom.models.base import ChatModel, Sampling
from dialoom.pocket.world import scenes as pocket
from dialoom.progress import quiet
from dialoom.scenarios.sotopia import LEAVES
from dialoom.simulate import Speaker, grow
from dialoom.store import TreeLog
from dialoom.text import decode_json

ROUNDS = 3
REWARD, GOAL = "reward", "goal"
ROLE = "role"
"""The fact that names the subject's role, once a scene is cast."""
NEEDED = ("roles", "measured", "scene", "characters")
"""The facts without which a scene cannot be played and judged."""


class Dimension(NamedTuple):
    """One of the seven: what is asked of the judge, and the whole numbers it may give."""

    asks: str
    low: int
    high: int


DIMENSIONS: Mapping[str, Dimension] = {
    "believability": Dimension("does this person talk like a human being, and like the one described?", 0, 10),
    "relationship": Dimension("is the bond between the two worse or better after this talk?", -5, 5),
    "knowledge": Dimension("did this person find out things worth knowing?", 0, 10),
    "secret": Dimension("did this person keep to itself what it wants nobody to know? 0: yes", -10, 0),
    "social_rules": Dimension("did this person keep to law and custom? 0: yes", -10, 0),
    "financial": Dimension("did this person lose or gain money or other goods?", -5, 5),
    GOAL: Dimension("how far did this person get with its own goal?", 0, 10),
}
"""Source: Sotopia's seven dimensions with their ranges, as DAT scores them; the wording is ours."""

QUESTION = ("Two people met.\n\nScene: {scene}\n\n{people}\n\nThis is what they said:\n\n{conversation}\n\nJudge "
            "{name} alone, on seven points, each with a whole number from its range:\n{points}\n\nSay in a few "
            "sentences what you saw. Then write one JSON object with the seven numbers and nothing after it: {example}")
ONLY = "\n\nThis time write nothing but the JSON object with its seven whole numbers, each in its range."
PERSON = "{name}:\n{background}\nGoal: {goal}"
JUDGING = Sampling(0.0, max_new_tokens=400)
MAX_CHARACTERS = 20_000  # of a judge's reply, from its end: no verdict takes so many

_OTHER_NAMES = {"financialandmaterialbenefits": "financial", "financialbenefits": "financial",
                "materialbenefits": "financial", "financialmaterialbenefits": "financial",
                "goalcompletion": GOAL, "secrets": "secret", "socialrule": "social_rules",
                "socialnorms": "social_rules"}
_NAMES = {name.replace("_", ""): name for name in DIMENSIONS} | _OTHER_NAMES
_QUOTES = r"[*_`\"']{0,3}"
_NAME = rf"[^\w\n]{{0,12}}(?:[0-9]{{1,2}}[.)][^\w\n]{{0,6}})?([A-Za-z][A-Za-z _/&-]{{2,40}}?){_QUOTES}\s{{0,2}}"
_RANGE = rf"(?:\([^()\n]{{0,40}}\)|,?\s-?[0-9]{{1,2}} to -?[0-9]{{1,2}})?{_QUOTES}"
_NUMBER = r"([-+]?[0-9]{1,3})(?:\s?/\s?([0-9]{1,3}))?(?![0-9]|[.,][0-9]|\s?/)"
_NOT_TWO = r"(?!\s{0,2}(?:-|–|\.\.|to\b|or\b)\s{0,2}[-+]?[0-9])"
_LINE = re.compile(rf"^{_NAME}{_RANGE}\s{{0,2}}[:=]\s{{0,2}}{_QUOTES}{_NUMBER}{_NOT_TWO}", re.MULTILINE)
_GOODBYE = re.compile(r"(?:^|[.!?,] ?)(?:good[ -]?)?bye(?:,? \w+)?[.!]*$", re.IGNORECASE)


# ------------------------------------------------------------------------------------------------ seven dimensions


def parse_verdict(text: str) -> dict[str, float] | None:
    """The seven numbers in a judge's words, in the order of `DIMENSIONS`; None if one is missing or out of its range.

    Read from the last JSON object that holds all seven (a number, or one in a list or object with its reason), else
    from lines such as `Goal: 7` or `3. Knowledge (0 to 10): 4/10`, the last of each. `7 to 8` is no number.
    """
    text = text[-MAX_CHARACTERS:].replace("\u2212", "-")
    found = _from_json(text) or _from_lines(text)
    if found is None or not all(one.low <= found[name] <= one.high for name, one in DIMENSIONS.items()):
        return None
    return {name: float(found[name]) for name in DIMENSIONS}


def _from_json(text: str) -> dict[str, int] | None:
    found = None
    at = text.find("{")
    while at >= 0:
        try:
            value, end = decode_json(text, at)
        except ValueError:
            value, end = None, at + 1
        scores = _scores(value)
        found = scores or found
        at = text.find("{", end if scores else at + 1)
    return found


def _scores(value: Any) -> dict[str, int] | None:
    """The seven of an object, whatever else it holds; None unless they are all there as whole numbers."""
    if not isinstance(value, dict):
        return None
    found = {name: number for key, held in value.items() if (name := _named(key)) and
             (number := _whole(held)) is not None}
    return found if found.keys() == DIMENSIONS.keys() else None


def _named(key: str) -> str | None:
    """The dimension that a judge means by a name."""
    return _NAMES.get(re.sub(r"[^a-z]", "", key.lower()))


def _whole(held: Any) -> int | None:
    """The one whole number in a value: 7, 7.0, "7", [reason, 7] or {"reasoning": ..., "score": 7}."""
    if isinstance(held, dict):
        held = next((held[name] for name in ("score", "rating", "value") if name in held), None)
    if isinstance(held, list):
        numbers = [one for one in held if isinstance(one, int | float) and not isinstance(one, bool)]
        held = numbers[0] if len(numbers) == 1 else None
    if isinstance(held, str) and re.fullmatch(r"\s*[-+]?[0-9]{1,3}\s*", held):
        return int(held)
    if isinstance(held, float) and held.is_integer():
        return int(held)
    return held if isinstance(held, int) and not isinstance(held, bool) else None


def _from_lines(text: str) -> dict[str, int] | None:
    found = {}
    for line in _LINE.finditer(text):
        name = _named(line[1])
        if name and (line[3] is None or int(line[3]) == DIMENSIONS[name].high):
            found[name] = int(line[2])
    return found if found.keys() == DIMENSIONS.keys() else None


@dataclass(frozen=True)
class SocialJudge:
    """A model that gives the subject of a scene the seven numbers; no verdict where it gives none in two tries.

    Scores the last turn with each of `DIMENSIONS` and `reward`, their unweighted mean (-30/7 to 40/7).
    Source: Sotopia's evaluation as DAT uses it; the prompt is ours, so scores are not those of published tables.
    """

    model: ChatModel
    sampling: Sampling = JUDGING

    @property
    def name(self) -> str:
        return f"social:{self.model.name}"

    @property
    def lowest(self) -> dict[str, float]:
        """What a subject gets that says nothing."""
        return _with_mean({name: float(one.low) for name, one in DIMENSIONS.items()})

    def judge(self, dialogues: Sequence[Dialogue]) -> list[Verdict | None]:
        ids = [content_id(self.name, one.scenario.facts.get(ROLE), one.last.id) for one in dialogues]
        found = ask_until_read(self.model, [_question(one) for one in dialogues], ids, parse_verdict,
                               sampling=self.sampling, reminder=ONLY)
        return [Verdict(_with_mean(scores)) if scores else None for scores in found]


def _with_mean(scores: Mapping[str, float]) -> dict[str, float]:
    return {REWARD: sum(scores.values()) / len(scores), **scores}


def _question(dialogue: Dialogue) -> Chat:
    facts = dialogue.scenario.facts
    names = [one["name"] for one in facts["characters"]]
    people = "\n\n".join(PERSON.format(**one) for one in facts["characters"])
    said = "\n".join(f"{names[at % 2]}: {turn.text}" for at, turn in enumerate(dialogue.turns))
    points = "\n".join(f"- {name}, {one.low} to {one.high}: {one.asks}" for name, one in DIMENSIONS.items())
    example = json.dumps(dict.fromkeys(DIMENSIONS, "..."))
    content = QUESTION.format(scene=facts["scene"], people=people, conversation=said, points=points, example=example,
                              name=names[facts["roles"].index(_role(dialogue))])
    return [{"role": "user", "content": content}]


def _role(dialogue: Dialogue) -> str:
    """Who is judged: the subject's role, or where none is cast the first that is measured."""
    facts = dialogue.scenario.facts
    return str(facts.get(ROLE) or facts["measured"][0])


# ------------------------------------------------------------------------------------------------ pocket's scenes


def pocket_scenes(kind: str, count: int, *, split: str, seed: int = 0) -> list[Scenario]:
    """Scenes of pocket's world with distinct ids, to be played as the one who wants something.

    In `bargain` that is the buyer in one scene and the seller in the next, as they are drawn.

    Args:
        kind: bargain, preference or guard.
        split: train or test; pocket has read train scenes in its pre-training.
    Raises: ConfigError: if kind or split is unknown, or there are not so many.
    """
    if kind not in pocket.KINDS or split not in ("train", "test"):
        raise ConfigError(f"scenes {kind!r} of split {split!r}; expected one of {', '.join(pocket.KINDS)}, and train "
                          "or test")
    try:
        return [_scenario(scene) for scene in pocket.make_scenes(kind, count, split, seed)]
    except ValueError as wrong:
        raise ConfigError(str(wrong)) from None


def _scenario(scene: pocket.Scene) -> Scenario:
    roles = [scene.player, scene.partner]
    characters = [{"name": f"The {role}", "background": "", "goal": scene.briefs[role]} for role in roles]
    return Scenario(scene.id, scene.opening, scene.briefs, {
        **scene.facts, "roles": roles, "measured": [scene.player], "scene": scene.opening, "characters": characters})


@dataclass(frozen=True)
class SceneJudge:
    """Pocket's exact rule: `reward` in 0..1, and `goal`, 1.0 where the player has what its brief asks for.

    A buyer's or seller's brief asks for one step of the price, the others for all there is.
    """

    name: str = "scene"

    @property
    def lowest(self) -> dict[str, float]:
        """What a player gets that says nothing."""
        return {REWARD: 0.0, GOAL: 0.0}

    def judge(self, dialogues: Sequence[Dialogue]) -> list[Verdict | None]:
        return [Verdict(scene_scores(one)) for one in dialogues]


def scene_scores(dialogue: Dialogue) -> dict[str, float]:
    """The exact scores of a scene of pocket's as far as it was played, also before its end or its first turn."""
    one = dialogue.scenario
    if one.facts.get("kind") not in pocket.KINDS:
        raise DataError(f"scene {one.id!r} is none of pocket's, so no rule can judge it; use SocialJudge")
    roles = one.facts["roles"]
    scene = pocket.Scene(one.id, one.facts["kind"], one.opening, roles[0], roles[1], dict(one.briefs), dict(one.facts))
    said = [(roles[at % 2], turn.text) for at, turn in enumerate(dialogue.turns)]
    reward = pocket.reward(scene, said) + 0.0  # no -0.0
    needed = pocket.STEP / abs(scene.facts["limit"] - scene.facts["start"]) if scene.kind == "bargain" else 0.0
    return {REWARD: reward, GOAL: float(reward > 0 and reward >= needed)}


# ------------------------------------------------------------------------------------------------ protocol


class EndJudge(Judge, Protocol):
    """A judge of whole scenes."""

    @property
    def lowest(self) -> Mapping[str, float]:
        """The metrics it scores, `reward` first, each with its lowest value."""
        ...


@dataclass(frozen=True)
class _AtEnd:
    """A judge that is asked about finished dialogues only."""

    inner: Judge
    is_over: Callable[[Dialogue], bool]

    @property
    def name(self) -> str:
        return self.inner.name

    def judge(self, dialogues: Sequence[Dialogue]) -> list[Verdict | None]:
        found: list[Verdict | None] = [Verdict()] * len(dialogues)
        ends = [at for at, dialogue in enumerate(dialogues) if self.is_over(dialogue)]
        for at, verdict in zip(ends, self.inner.judge([dialogues[at] for at in ends]), strict=True):
            found[at] = verdict
        return found


def leaves(text: str) -> bool:
    """Whether a speaker ends the conversation: its last words are the agreed mark, or a goodbye and nothing else."""
    plain = " ".join(text.split())
    return plain.rstrip(".!").lower().endswith(LEAVES) or _GOODBYE.search(plain) is not None


def social(subject: Speaker, partner: Speaker, scenes: Sequence[Scenario], judge: EndJudge, *, label: str,
           rounds: int = ROUNDS, seed: int = 0, sink: TreeLog | None = None, log: Log = quiet) -> Result:
    """Play every scene in every role that can be measured, and judge how the subject did.

    Rows of `social`: each metric of the judge, `reward` first, over all; then by role (`reward_first`) and, where
    scenes name the sort of their goal, by that (`reward_price`). Scenes of one environment are drawn together for the
    intervals, and n counts environments. A subject that falls silent gets the lowest of everything for the scene; a
    scene without a verdict, or in which the partner falls silent, is left out of the means and counted in `unread`.

    Args:
        scenes: whose briefs and facts are those of `read_sotopia` or `pocket_scenes`.
        rounds: each of two turns; a scene that allows it ends sooner where somebody leaves.
        sink: a log that holds what was said before; a killed evaluation goes on from it to the same figures.
    Raises:
        ConfigError: if the two have one name.
        DataError: if an id stands twice among the scenes, or one lacks facts.
    """
    played = play(subject, partner, scenes, judge, label=label, rounds=rounds, seed=seed, sink=sink, log=log)
    rows = measure(played, judge, label=label, rounds=rounds, seed=seed)
    unread = sum(not np.isfinite(final_scores(one, judge, rounds)[REWARD]) for one in played)
    return Result(rows, played, unread)


def play(subject: Speaker, partner: Speaker, scenes: Sequence[Scenario], judge: EndJudge, *, label: str,
         rounds: int = ROUNDS, seed: int = 0, sink: TreeLog | None = None, log: Log = quiet) -> list[Dialogue]:
    """The dialogues of `social`, judged: one for each scene and role that is measured, in an order of the scenes alone.

    Args, Raises: as of `social`.
    """
    _check(subject, partner, scenes)
    is_over = partial(_is_over, turns=2 * rounds)
    played: list[Dialogue] = []
    for speakers in ([subject, partner], [partner, subject]):
        at = speakers.index(subject)
        cast = [_cast(scene, role, speakers) for scene in scenes for role in scene.facts["measured"]
                if scene.facts["roles"][at] == role]
        played += _play(cast, speakers, _AtEnd(judge, is_over), is_over, label=label, turns=2 * rounds, seed=seed,
                        sink=sink, log=log)
    return played


def measure(played: Sequence[Dialogue], judge: EndJudge, *, label: str, rounds: int = ROUNDS,
            seed: int = 0) -> list[Row]:
    """The rows of `social` about dialogues that were played with this judge and so many rounds."""
    scores = [final_scores(one, judge, rounds) for one in played]
    return _rows(label, played, scores, list(judge.lowest), seed)


def final_scores(dialogue: Dialogue, judge: EndJudge, rounds: int = ROUNDS) -> dict[str, float]:
    """The subject's scores: the lowest where it fell silent, not a number where nobody judged."""
    return _scores_of(dialogue, judge.lowest, partial(_is_over, turns=2 * rounds))


def _check(subject: Speaker, partner: Speaker, scenes: Sequence[Scenario]) -> None:
    if subject.name == partner.name:
        raise ConfigError(f"subject and partner are both named {subject.name!r}; give them two names")
    seen = set()
    for scene in scenes:
        if missing := [name for name in NEEDED if name not in scene.facts]:
            raise DataError(f"scene {scene.id!r} has no {' and no '.join(missing)} among its facts; make scenes with "
                            "read_sotopia or pocket_scenes")
        if scene.id in seen:
            raise DataError(f"scene {scene.id!r} is there twice; ids must be unique")
        seen.add(scene.id)


def _is_over(dialogue: Dialogue, turns: int) -> bool:
    if len(dialogue.turns) >= turns:
        return True
    return bool(dialogue.turns and dialogue.scenario.facts.get("may_leave")) and leaves(dialogue.last.text)


def _cast(scene: Scenario, role: str, speakers: Sequence[Speaker]) -> Scenario:
    """The scene with its briefs under the names of those who play it, and who of them is judged."""
    briefs = {speaker.name: scene.briefs[name] for speaker, name in zip(speakers, scene.facts["roles"], strict=True)}
    return replace(scene, id=f"{scene.id}/{role}", briefs=briefs, facts={**scene.facts, ROLE: role})


def _play(cast: Sequence[Scenario], speakers: Sequence[Speaker], judge: Judge, is_over: Callable[[Dialogue], bool], *,
          label: str, turns: int, seed: int, sink: TreeLog | None, log: Log) -> list[Dialogue]:
    def more(tree: DialogueTree, turn: Turn) -> bool:
        return not is_over(tree.dialogue(turn))

    held: dict[str, DialogueTree] = sink.trees() if sink else {}
    ids = [content_id("social", label, seed, one.id, one.opening, dict(one.briefs)) for one in cast]
    trees = [held.get(id) or DialogueTree(scenario, id) for id, scenario in zip(ids, cast, strict=True)]
    grow(trees, speakers, max_turns=turns, seed=seed, judges=[judge], expand=more, sink=sink, log=log)
    return [tree.dialogue(next(iter(tree.leaves()), None)) for tree in trees]


def _scores_of(dialogue: Dialogue, lowest: Mapping[str, float],
               is_over: Callable[[Dialogue], bool]) -> dict[str, float]:
    """The subject's scores; the lowest where it fell silent, not a number where nobody judged."""
    if is_over(dialogue):
        return {name: dialogue.last.scores.get(name, np.nan) for name in lowest}
    silent = dialogue.scenario.facts["roles"][len(dialogue.turns) % 2]
    return dict(lowest) if silent == dialogue.scenario.facts[ROLE] else dict.fromkeys(lowest, np.nan)


def _rows(label: str, played: Sequence[Dialogue], scores: Sequence[Mapping[str, float]], metrics: Sequence[str],
          seed: int) -> list[Row]:
    facts = [one.scenario.facts for one in played]
    groups: dict[str, list[int]] = {"": list(range(len(played)))}
    for name in (ROLE, "goal"):
        for at, one in enumerate(facts):
            if name in one:
                groups.setdefault(f"_{one[name]}", []).append(at)
    rows = []
    for ending, places in groups.items():
        for metric in metrics:
            drawn: dict[str, list[float]] = {}
            for at in places:
                own = str(facts[at].get("environment") or played[at].scenario.id.rpartition("/")[0])
                drawn.setdefault(own, []).append(scores[at][metric])
            rows.append(mean_row("social", label, metric + ending, list(drawn.values()), seed))
    return rows
