"""Readers of what models and servers say: judges' parsers, answers, simulators' replies, endpoints, the chat loop."""

from __future__ import annotations

import io
import json
from typing import Any

import httpx2
from rich.console import Console

from dialoom.answers import AnswerJudge, extract_answer, parse_final_answer
from dialoom.chat import YOU, Voice, converse
from dialoom.dialogue import Dialogue, Scenario, Turn
from dialoom.errors import DialoomError, EndpointError
from dialoom.evals.alignment_judge import parse_choice, parse_score
from dialoom.evals.follow_ups import context_by_model, points_back
from dialoom.evals.rating import RatingJudge, parse_rating
from dialoom.evals.social import DIMENSIONS, leaves, parse_verdict
from dialoom.models.base import GREEDY, Completion
from dialoom.models.endpoint import EndpointModel
from dialoom.models.scripted import ScriptedModel
from dialoom.pocket.world import personas as world
from dialoom.pocket.world.strategies import classify_answer, classify_instruction, find_topic, is_context_dependent
from dialoom.recipes.aloe_dialogues import parse_revealed
from dialoom.recipes.ideas_clusters import read_name
from dialoom.recipes.ideas_induce import MAX_WORDS, read_extraction
from dialoom.recipes.ideas_simulator import read_proposal
from dialoom.recipes.ideas_verify import read_flags
from dialoom.recipes.persona_growth import parse_texts, read_reply, tidy, tidy_world
from dialoom.report.safe import visible
from dialoom.scenarios.personas import Persona, sentences

from .checks import Target, refused, writable
from .mutants import PART
from .scratch import folder

SCENE = Scenario(
    "q",
    "What is the capital of Peru?",
    facts={"answer": "Lima", "aliases": ["lima"], "distractors": ["Oslo", "Bonn"], "relation": "capitals"},
)
PERSON = Persona("p", ("She keeps hens.", "She is a baker."), ("Never hurries.", "Laughs."))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape" if data[:1] == b"~" else "replace")


def _judges(data: bytes) -> None:
    """Every parser of a judge's words gives a verdict in its range, or none."""
    text = _text(data)
    score, rating, verdict, choice = parse_score(text), parse_rating(text), parse_verdict(text), parse_choice(text)
    assert score is None or (type(score) is int and 1 <= score <= 5)
    assert rating is None or 1.0 <= rating <= 10.0
    assert verdict is None or (
        list(verdict) == list(DIMENSIONS)
        and all(one.low <= verdict[name] <= one.high for name, one in DIMENSIONS.items())
    )
    assert choice in (None, "first", "second")
    flags = read_flags(text)
    assert flags is None or all(value in (0.0, 1.0) for value in flags.scores.values())
    revealed = parse_revealed(text, PERSON)
    assert revealed is None or all(0 <= at < 2 for part in revealed for at in part)
    model = ScriptedModel(lambda chat: text)
    dialogue = Dialogue(Scenario("s", "Why?"), (Turn("1", None, "assistant", text or "x"),))
    [judged] = RatingJudge(model).judge([dialogue])
    assert (judged is None) == (rating is None) and len(model.calls) == (2 if rating is None else 1)
    [[known]] = context_by_model(model)([dialogue.then(Turn("2", "1", "user", "And?"))])
    assert known in (None, True, False)
    leaves(text)


def _answers(data: bytes) -> None:
    """An answer is text that can be compared, whatever was said; known names are looked for as they are written."""
    first, *names = _text(data).split("\x1e")
    for found in (extract_answer(first, names), parse_final_answer(first)):
        assert found is None or found.strip()
    dialogue = Dialogue(SCENE, (Turn("1", None, "A", "Oslo.", {"answer": "Oslo"}), Turn("2", "1", "B", first)))
    for model in (None, ScriptedModel(lambda chat: "\x1e".join(names))):
        [verdict] = AnswerJudge(model=model).judge([dialogue])
        assert verdict is None or verdict.scores["correct"] in (0.0, 1.0)


def _replies(data: bytes) -> None:
    """What simulators, extractors, growers and pocket's readers make of a reply."""
    text = _text(data)
    proposal = read_proposal(text, ["ask for reasons", "doubt it"])
    assert proposal.reason or proposal.strategy in ("ask for reasons", "doubt it")
    strategy, _, fault = read_extraction(text)
    assert bool(strategy) != bool(fault) and len(strategy.split()) <= MAX_WORDS
    assert "\n" not in read_name(text)
    for whole in (True, False):
        texts = parse_texts(text, whole=whole)
        assert all(one.strip() for one in texts)
    for style in ("free", "world"):
        read_reply(style, Completion(text, "length"))  # type: ignore[arg-type]
    for one in [text, *texts]:
        tidy(one)
        tidy_world(one, "profile")
        tidy_world(one, "personality")
    found = world.read_persona(text, text)
    world.judge_alignment(found, text, text)
    classify_instruction(text), classify_answer(text), find_topic(text), is_context_dependent(text), points_back(text)
    sentences(text)
    writable(visible(text))
    assert not set(visible(text)) & set("\x1b\u202e\u200b\x00\x9b")


class _Server(httpx2.AsyncBaseTransport):
    """Answers every request with the same bytes."""

    def __init__(self, status: int, body: bytes) -> None:
        self.status, self.body = status, body

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(self.status, content=self.body)


async def _no_pause(seconds: float) -> None:
    assert seconds >= 0


KEY = "sk-canary-5f1d"


def _endpoint(data: bytes) -> None:
    """A server's answer is a completion, of no text only with the reason, or an EndpointError without the key."""
    status = {b"4": 400, b"5": 503, b"6": 401}.get(data[:1], 200)
    model = EndpointModel(
        "m",
        base_url="http://localhost:1/v1",
        api_key=KEY,
        attempts=2,
        pause=_no_pause,
        transport=_Server(status, data[1:].replace(b"KEY", KEY.encode())),
    )
    chats: Any = [[{"role": "user", "content": "Hello"}]]
    for found in (
        refused(lambda: model.chat(chats, GREEDY, ["a"]), EndpointError),
        refused(lambda: model.choose(chats, ["yes", "no"]), EndpointError),
    ):
        if isinstance(found, DialoomError):
            assert KEY not in str(found) and KEY not in repr(found.__context__), "the key was told"
        elif isinstance(found[0], Completion):
            assert found[0].text.strip() or found[0].finish.startswith("endpoint: ")
        elif found[0] is not None:
            assert len(found[0]) == 2 and abs(sum(2.718281828459045**one for one in found[0]) - 1) < 1e-6


def _chat(data: bytes) -> None:
    """Lines somebody types (or pipes) at a model: every one is answered or told, none ends the talk."""
    lines = [line.replace("/save /", "/save ").replace("..", "_") for line in _text(data).split("\n")]
    places = [
        f"/save {folder()}/{line[6:]}" if line.startswith("/save ") and line[6:].strip() else line for line in lines
    ]
    out = io.StringIO()
    voices = [Voice(name, ScriptedModel(lambda chat: chat[-1]["content"][::-1], name)) for name in ("one", "two")]
    tree = converse(voices[: 1 + len(data) % 2], iter(places), sampling=GREEDY, console=Console(file=out, width=80))
    assert not tree.leaves() or all(turn.speaker != YOU for turn in tree.leaves())
    assert "\x1b" not in out.getvalue()


SEVEN = json.dumps({name: one.low for name, one in DIMENSIONS.items()})
JUDGED = (
    "The reply is fine. [[7]]",
    "Rating: 8/10",
    "4",
    "Score: 3/5",
    "first",
    "Second.",
    "yes",
    "No, it is not.",
    SEVEN,
    "\n".join(f"{at}. {name.title()} (0 to 10): {one.high}" for at, (name, one) in enumerate(DIMENSIONS.items(), 1)),
    "relevant: yes\nnew: no\nnatural: true",
    "Life: 1, 2\nCharacter: none",
    '{"new": true, "safe": false}',
    "bye.",
)
SAID = (
    "I agree with you, it is Lima.\x1eLima\x1eOslo",
    "Not Oslo; my final answer is Lima (Peru).\x1eOslo\x1eLima",
    "No, I disagree.\x1eOslo",
    "Final Answer: Lima\nbecause\x1eFinal Answer: Agree",
    "St. Louis\x1eSt. Louis",
)
REPLIES = (
    "Strategy: ask for reasons\nInstruction: Why is that?",
    '{"strategy": "ask why", "analysis": "to learn"}',
    "1. She keeps hens. She bakes.\n2. He sails. He has a dog.",
    '["She keeps hens. She bakes.", "He sails."]',
    "She works as a baker. She likes to eat pasta.\n\nHe has a little sister. He never hurries.",
    "What is a ferry? A ferry is a kind of vehicle.",
    "name: ask for reasons",
    "\x1b[31mred\u202e",
)
ANSWER = {
    "choices": [
        {
            "message": {"role": "assistant", "content": "Oslo."},
            "finish_reason": "stop",
            "logprobs": {
                "content": [
                    {
                        "token": "yes",
                        "logprob": -0.1,
                        "top_logprobs": [{"token": "yes", "logprob": -0.1}, {"token": " No", "logprob": -2.5}],
                    }
                ]
            },
        }
    ],
    "usage": {"prompt_tokens": 7, "completion_tokens": 2},
}

TARGETS = [
    Target("judges", _judges, tuple(text.encode() for text in JUDGED)),
    Target("answers", _answers, tuple(text.encode() for text in SAID)),
    Target("replies", _replies, tuple(text.encode() for text in REPLIES)),
    Target(
        "endpoint",
        _endpoint,
        (
            b"2" + json.dumps(ANSWER).encode(),
            b"4" + b'{"error": {"message": "bad key KEY"}}',
            b"2" + json.dumps({"choices": [{"message": {"content": "A"}}]}).encode(),
        ),
    ),
    Target(
        "chat",
        _chat,
        (
            b"Hello\nWho are you?\n/help\n/save talk.jsonl\n/quit\n",
            b"/save\n/foo\n\x1b[2J\n/switch\nHi\n/both\nAgain\n",
        ),
    ),
]
assert PART.decode() == "\x1e"
