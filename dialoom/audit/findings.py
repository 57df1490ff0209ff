"""What an audit can find: its checks, from which share on each of them counts, and what to do about it.

A check looks at many things (turns, rows, dialogues) and is hit by some. The surprising choice: it fails by the share
of hits, not by their number, since real people do quote an assistant or say a thing twice; what must never happen has
the threshold 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
ORDER: tuple[str, ...] = ("error", "warning", "note", "fine", "not looked at")
EXAMPLES = 5    # of a check are kept, the first ones
SHOWN = 300     # characters of an example's text


@dataclass(frozen=True)
class Check:
    """One thing looked for.

    Attributes:
        unit: what is counted.
        severity: of the finding where more than `threshold` of the units are hit.
        threshold: a share; where it is not 0, pocket's own runs stay below it but for warnings that are true of them
            (docs/audit.md).
        what: what a hit is.
        advice: what to do next.
    """

    title: str
    unit: str
    severity: Severity
    threshold: float
    what: str
    advice: str


CHECKS: Mapping[str, Check] = {
    # ---- reading
    "unreadable": Check("Rows that cannot be read", "rows", "error", 0.0,
                        "a row that cannot be read, or a turn at which the reader cut the dialogue: empty, no text, of "
                        "an unknown role",
                        "mend the lines named here, or leave them out: what the reader left out is not trained on"),
    "mended": Check("Rows that were mended in reading", "rows", "warning", 0.0,
                    "neighbours of one role merged, turns before the first question or dialogues without an answer "
                    "left out, ids told apart",
                    "look at the lines named here: mostly a column was taken for another, or a turn went missing"),
    "many_message_reply": Check("Replies of several messages", "rows", "warning", 0.0,
                                "chosen or rejected holds more than one message; only the last is trained on here",
                                "cut such a row into one for each trained message"),
    # ---- who speaks
    "role_leak": Check("User speaks as an assistant", "user turns", "error", 0.01,
                       "the user says what only an assistant says: that it is an AI, offers of help, refusals",
                       "leave these dialogues out; tell the simulator in its brief whose messages it writes, or train "
                       "it on real user turns; check that its chat has the roles swapped"),
    "speaker_label": Check("Turn begins with a speaker's label", "turns", "error", 0.01,
                           "the text begins with “User:”, “Assistant:” or a speaker's name",
                           "strip the label before training, or the model learns to write it"),
    "both_parties": Check("Both parties' words in one turn", "turns", "error", 0.01,
                          "below its first line the text goes on as somebody else, after a label or a role mark",
                          "cut the text before the label; stop generation at it; check that replies end in the "
                          "template's end-of-turn token"),
    "echo": Check("Turn says the other's words again", "turns", "warning", 0.05,
                  "eight words or more of the turn before, whole, or nearly the same text",
                  "look at the examples; a simulator that copies has lost its role: raise its temperature, shorten its "
                  "chat, or train it"),
    # ---- sameness
    "repeated_opening": Check("Dialogues begin alike", "dialogues", "warning", 0.25,
                              "the commonest first five words of a speaker's first turn",
                              "vary the scenarios or personas, raise the temperature of first turns"),
    "repeated_turn": Check("Speaker repeats itself", "turns", "warning", 0.10,
                           "nearly the same text (edit ratio 0.9) as an earlier turn of the same speaker",
                           "drop the dialogue from that turn on; IDEAS' strategies help, or a limit on likeness "
                           "as its setting alike"),
    "same_elsewhere": Check("Same turn in other dialogues", "turns", "warning", 0.30,
                            "a turn of four words or more that stands word for word in another dialogue",
                            "remove copies before training, or see to a more varied simulator"),
    "diversity": Check("Little variety", "samples of turns", "warning", 0.0,
                       "distinct-2 of the turns under a third of what the same words in random order give",
                       "few phrases carry all turns; dialoom eval diversity looks closer, IDEAS mends it"),
    # ---- ends and lengths
    "empty_turn": Check("Empty turns", "turns", "error", 0.0, "nobody said anything",
                        "leave the dialogue out from there on"),
    "missing_stop": Check("Reply cut off", "turns", "error", 0.05,
                          "it was cut at the token limit, or ends in the middle of a sentence or of a code block",
                          "allow more new tokens, or leave these turns out: who is trained on them learns not to stop"),
    "open_end": Check("Dialogue ends on a question", "dialogues", "note", 0.0,
                      "nobody answered the user's last turn", "nothing to do: such a turn is context only"),
    # ---- persona
    "persona_contradiction": Check("User contradicts the persona", "user turns", "error", 0.02,
                                   "a fact or a trait that, read exactly, is not the persona's",
                                   "leave these dialogues out; repeat the persona in every prompt, use a stronger "
                                   "simulator"),
    "persona_drift": Check("User's words fit somebody else's persona", "dialogues", "warning", 0.15,
                           "late turns are nearer (cosine) to most other personas than to the own one; by chance: 50 %",
                           "shorten dialogues, repeat the persona in every prompt, or use a stronger simulator"),
    "judged_drift": Check("A judge sees the user leave the persona", "dialogues judged", "warning", 0.10,
                          "a model says that messages contradict the description, or each other",
                          "read the examples: a judge errs, too"),
    # ---- rows
    "no_trained_token": Check("Rows without a trained token", "rows", "error", 0.0,
                              "nothing in the row is marked for training, or what is marked is empty",
                              "leave the rows out, or mark assistant messages"),
    "same_reply": Check("Chosen equals rejected", "pairs", "error", 0.0,
                        "both replies are the same, as text or as tokens", "leave such pairs out: they teach nothing"),
    "prompt_mismatch": Check("Prompts of a pair differ", "pairs", "error", 0.0,
                             "chosen and rejected do not answer the same words",
                             "pair replies to one prompt only: else the loss is about the prompts"),
    "both_ways": Check("Preferred both ways", "pairs", "warning", 0.02,
                       "the same two replies to the same prompt, once this way and once the other",
                       "raise the margin between chosen and rejected, or drop both"),
    "duplicate_row": Check("Rows that stand there twice", "rows", "note", 0.05,
                           "the same prompt and the same trained words", "remove copies, or keep them as weight"),
    # ---- template and mask
    "refused_row": Check("Rows that training refuses", "rows", "error", 0.0,
                         "the template or the trainer cannot take the row", "read the message: it says what to change"),
    "roles_folded": Check("Roles the template does not take", "rows", "note", 0.0,
                          "written otherwise than given: a system text into the user's message, neighbours merged",
                          "nothing if it is meant; else write the chats as the template wants them"),
    "role_mark": Check("Role marks in a text", "rows", "warning", 0.0,
                       "special tokens written out in a message; here they are broken up, other trainers obey them",
                       "look where they come from: mostly a transcript that was rendered once already"),
    "mask": Check("Mask is not the reply and its end", "rows", "error", 0.0,
                  "the trained tokens, decoded, are not the reply's words followed by the end of the turn",
                  "do not train before this is mended: report it with the row, or correct the chat template"),
    "no_end": Check("No end of turn is trained", "rows", "warning", 0.0,
                    "the last trained token of what is to be imitated or preferred is not the end of the turn",
                    "right for replies cut at a limit (DITTO); else correct the chat template"),
    "bos_twice": Check("Beginning of sequence twice", "rows", "error", 0.0,
                       "the row begins with the BOS token and has it again right behind",
                       "remove it from the chat template, or from what the tokenizer adds"),
    "round_trip": Check("Text that tokens cannot hold", "rows", "warning", 0.01,
                        "a reply encoded and decoded is another text, or holds unknown tokens",
                        "use a tokenizer that knows these characters, or normalise the text first"),
    "lost_message": Check("Message not in the tokens", "rows", "error", 0.0,
                          "a message's words do not stand in the row as the template wrote it",
                          "check the chat template: it drops or changes messages (thinking blocks, tools)"),
    "generation_prefix": Check("Prompt is no beginning of the row", "rows", "warning", 0.0,
                               "the prompt a reply is asked for with is not how the finished dialogue begins",
                               "here the row is built from the prompt, so training and talking agree; another trainer "
                               "that renders the whole chat trains on other tokens"),
    "too_long": Check("Trained tokens beyond the limit", "rows", "error", 0.0,
                      "the row has more tokens than the limit: a trainer that keeps the start cuts trained tokens off",
                      "raise the limit, shorten the dialogues, or cut them from the left at a turn's border"),
    "changes_text": Check("Template changes texts", "templates", "error", 0.0,
                          "a word of a message does not stand in the rendered chat as it was given",
                          "do not train with this template: what is learned is not what was said"),
    "adds_special": Check("Tokenizer adds tokens to rendered chats", "templates", "note", 0.0,
                          "tokenising the rendered chat once more with special tokens doubles the BOS",
                          "nothing here; in another trainer pass add_special_tokens=False"),
    "rewrites_history": Check("Template rewrites history", "templates", "note", 0.0,
                              "a turn's tokens change when the dialogue goes on, so less of it is shared",
                              "nothing: rows stay right, each turn gets a row of its own"),
}
"""All checks by name, in the order they are told in."""


@dataclass(frozen=True)
class Hit:
    """An example: the id to open it by, and what was seen there."""

    where: str
    text: str


@dataclass(frozen=True)
class Finding:
    """What came of one check.

    Attributes:
        count, of: how many units were hit, and how many looked at.
        figures: what was measured, by name.
    """

    name: str
    count: int
    of: int
    examples: tuple[Hit, ...] = ()
    figures: Mapping[str, Any] | None = None

    @property
    def check(self) -> Check:
        """What was looked for."""
        return CHECKS[self.name]

    @property
    def share(self) -> float:
        """Of the units looked at; 0 where there were none."""
        return self.count / self.of if self.of else 0.0

    @property
    def level(self) -> str:
        """The check's severity if it failed, else "fine"; "not looked at" where there was nothing to look at."""
        if not self.of:
            return "not looked at"
        return self.check.severity if self.share > self.check.threshold else "fine"

    def to_json(self) -> dict[str, Any]:
        """The finding as plain JSON."""
        return {"check": self.name, "level": self.level, "count": self.count, "of": self.of, "unit": self.check.unit,
                "share": round(self.share, 6), "threshold": self.check.threshold, "what": self.check.what,
                "next": self.check.advice, "figures": dict(self.figures or {}),
                "examples": [{"id": hit.where, "text": hit.text} for hit in self.examples]}


class Tally:
    """Counts what checks looked at and what hit them, one thing after another; keeps the first examples."""

    def __init__(self) -> None:
        self._of: Counter[str] = Counter()
        self._hits: Counter[str] = Counter()
        self._examples: dict[str, list[Hit]] = {}
        self._figures: dict[str, dict[str, Any]] = {}

    def look(self, name: str, where: str, hit: str | bool | None = None) -> None:
        """One unit was looked at; `hit` is what was seen, or True, if it was hit."""
        self.count(name, 1)
        if hit:
            self.hit(name, where, hit if isinstance(hit, str) else "")

    def count(self, name: str, units: int) -> None:
        """So many units were looked at."""
        self._of[name] += units

    def hit(self, name: str, where: str, text: str, times: int = 1) -> None:
        """A unit that was counted is hit."""
        self._hits[name] += times
        kept = self._examples.setdefault(name, [])
        if len(kept) < EXAMPLES:
            kept.append(Hit(where, text if len(text) <= SHOWN else f"{text[:SHOWN]} …"))

    def figure(self, name: str, **figures: Any) -> None:
        """Measured values that belong to a check."""
        self._figures.setdefault(name, {}).update(figures)

    def findings(self) -> list[Finding]:
        """All checks that looked at something, the worst first."""
        found = [Finding(name, self._hits[name], self._of[name], tuple(self._examples.get(name, ())),
                         self._figures.get(name)) for name in CHECKS if self._of[name]]
        return sorted(found, key=lambda finding: ORDER.index(finding.level))
