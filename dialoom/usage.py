"""How the command line presents itself: commands in rooms by what they are for, examples, tidy help.

What the commands do stands in `cli` and `commands`; nothing here runs anything.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection
from typing import Annotated, Any, get_origin

from cyclopts import Group, Parameter

ROOMS = {  # in the order of `dialoom --help`; a command that is in none stands in the last
    "See it work": ("demo", "chat", "pocket"),
    "Methods": (),
    "Measure": ("eval", "scorecard"),
    "Runs": ("view", "show", "resume", "export", "audit"),
    "More": (),
}
FIRST = "New here: dialoom demo shows every method in some ten minutes; dialoom chat pocket talks at once."
EXAMPLES = {
    "pbt": ("dialoom pbt --limit 60 --out runs/first              # a short run on pocket",
            "dialoom pbt trees --limit 60 --out runs/first        # the first stage only; the line above does the rest",
            "dialoom pbt --data mine.csv --model hf:<name> --partner pocket --sft.tune lora --dpo.tune lora"),
    "ditto": ("dialoom ditto --max-authors 2 --out runs/two         # two authors of pocket's world",
              "dialoom ditto --demos my-mails/ --out runs/me        # a folder of your own texts",
              "dialoom ditto --preset paper --demos my-mails/ --model hf:<name>"),
    "aloe": ("dialoom aloe --train-count 24 --eval-count 8         # a short run on pocket",
             "dialoom aloe --model hf:<name> --conversations conversations.jsonl  # dialogues made elsewhere"),
    "ideas": ("dialoom ideas --opening-count 40 --eval-count 8      # a short run on pocket",
              "dialoom ideas train-chat --data sharegpt.json --verifier rule  # your dialogues"),
    "dat": ("dialoom dat --train-scenes 40 --test-scenes 20       # a short run on pocket",
            "dialoom dat --scenes redteam                         # steer an attacker against pocket's guard"),
    "eval": ("dialoom eval flipflop --limit 20                     # pocket on its own questions",
             "dialoom eval flipflop --model hf:<name> --data mine.csv",
             "dialoom eval team --model run:runs/demo/pbt --partner pocket-small"),
    "chat": ("dialoom chat pocket",
             "dialoom chat runs/demo/pbt                           # what it trained, and /both beside what it was",
             "dialoom chat --planner runs/demo/dat                 # steered by DAT, and /both unsteered beside it"),
    "view": ("dialoom view runs/demo/pbt                           # in the browser, live, until Ctrl-C",
             "dialoom view runs/demo/pbt --html pbt.html           # one file to keep or to send"),
    "audit": ("dialoom audit runs/demo/pbt                          # what a run trained on, in its model's tokens",
              "dialoom audit talk.jsonl --model hf:<name> --html audit.html  # anybody's transcripts or pairs"),
    "scorecard": ("dialoom scorecard pocket --limit 10",
                  "dialoom scorecard run:runs/demo/pbt --out card.md"),
    "export": ("dialoom export runs/demo/pbt --to trl --out my-pairs",
               "dialoom export runs/demo/pbt --to model --out my-model"),
    "completion": ("dialoom completion bash > ~/.local/share/bash-completion/completions/dialoom",),
}
"""What a command's help ends with. <name> stands for a model of the user's."""


def examples(command: str) -> str:
    """The examples of a command as the end of its help, if it has any."""
    lines = EXAMPLES.get(command, ())
    return "Examples:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""


def rooms_of(commands: Collection[str], methods: Collection[str]) -> dict[str, Group]:
    """The group each command (or group of commands) stands under."""
    groups = {title: Group(title, sort_key=place) for place, title in enumerate(ROOMS)}
    found = {}
    for typed in commands:
        name = typed.split()[0]
        title = "Methods" if name in methods else next((room for room, names in ROOMS.items() if name in names), "More")
        found[name] = groups[title]
    return found


@functools.cache
def settings_group(part: str) -> Group:
    """The panel of a part of a recipe's settings ("": its own); "Run": what every recipe has."""
    if part == "Run":
        return Group("Run", sort_key=(0, ""))
    return Group(f"Settings: {part}" if part else "Settings", sort_key=(1, part))


def presentable(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose help shows no empty defaults and wraps its texts itself."""
    @functools.wraps(command)
    def shown(*given: Any, **named: Any) -> Any:
        return command(*given, **named)

    signature = inspect.signature(command, eval_str=True)
    parameters = [_quiet(parameter) for parameter in signature.parameters.values()]
    shown.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    shown.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    shown.__doc__ = re.sub(r"\n {12}\s*", " ", command.__doc__ or "")
    return shown


def _quiet(parameter: inspect.Parameter) -> inspect.Parameter:
    about: dict[str, Any] = {}
    if parameter.default is None or parameter.default in ("", (), 0, False):
        about["show_default"] = False
    if get_origin(parameter.annotation) is tuple:
        about["negative"] = ""
    return parameter.replace(annotation=Annotated[parameter.annotation, Parameter(**about)]) if about else parameter
