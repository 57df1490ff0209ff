"""The plain commands of `dialoom`: those that are no recipe. Each imports what it needs when it is called."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from dialoom.errors import ConfigError

DEVICES = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def say(line: str) -> None:
    """One line of what a run has to tell."""
    print(line, flush=True)


def one_thread_for_pocket(*specs: str) -> None:
    """Where only pocket models compute, give torch one thread unless the user says otherwise.

    They are too small to share a step between threads: on two busy cores a step of two threads took many times as long.
    """
    if all(spec.startswith("pocket") for spec in specs if spec):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def check(device: str = "auto", **numbers: tuple[float, float]) -> None:
    """Refuse a device nobody has, and numbers (value, least) that are too small, before anything is loaded."""
    if not DEVICES.fullmatch(device):
        raise ConfigError(f"--device {device!r}: expected auto, cpu, cuda, cuda:<number> or mps")
    for name, (value, least) in numbers.items():
        if not value >= least:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: expected at least {least:g}")


def evaluate(name: str, /, *, model: str = "pocket", partner: str = "", judge: str = "", data: str = "",
             strategies: str = "", limit: int = 0, seed: int = 1, brief: str = "", max_new_tokens: int = 48,
             device: str = "auto", out: Path | None = None) -> None:
    """Run one evaluation on any model, or look at a file of dialogues.

    Args:
        name: flipflop, are_you_sure, recall, misinformation, team; quality, mtbench; or diversity.
        model: pocket, pocket-small, hf:<name or path>[+<adapter>], openai:<model> or run:<folder>.
        partner: the other member of the team; only `team` needs one.
        judge: a model that rates answers (quality, mtbench), or says which turns need their context (diversity).
        data: questions: TriviaQA JSON or JSONL, or CSV with question,answer. For quality and diversity dialogues in
            ShareGPT's layout, for mtbench questions in MT-Bench's. Empty: the pocket world's.
        strategies: a JSON list of strategies, which diversity looks for.
        limit: use at most this many questions, conversations or user turns; 0 means all, or what is usual.
        seed: draws wrong answers and phrasings.
        brief: system message of the model under test.
        max_new_tokens: length limit of one reply.
        device: cpu, cuda, mps or auto.
        out: also write the rows to this file, as results.json has them.
    """
    from dialoom.evaluate import run_named

    one_thread_for_pocket(model, partner, judge)
    check(device, limit=(limit, 0), max_new_tokens=(max_new_tokens, 1))
    run_named(name, model, partner=partner, judge=judge, data=data, strategies=strategies, limit=limit, seed=seed,
              brief=brief, max_new_tokens=max_new_tokens, device=device, out=out)


def show(run: Path, /, *, tree: str | None = None, limit: int = 1) -> None:
    """Print dialogue trees of a run, with scores and with the replies that were chosen and rejected.

    Args:
        run: a run's folder, or a trees.jsonl.
        tree: the id of a tree, or its beginning. Without it, the trees with the most kinds of pairs.
        limit: how many trees; 0 means all.
    """
    from dialoom.show import show_run

    check(limit=(limit, 0))
    show_run(run, tree=tree, limit=limit)


def chat(model: str, /, *, brief: str = "", temperature: float = 0.7, max_new_tokens: int = 200, seed: int = 0,
         device: str = "auto") -> None:
    """Talk with a model. /save FILE keeps the dialogue as a tree log, /quit ends it.

    Args:
        model: pocket, pocket-small, hf:<name or path>[+<adapter>], openai:<model>, run:<folder>, or a run's folder.
        brief: system message.
        temperature: 0 is greedy.
        max_new_tokens: length limit of one reply.
        seed: the same words in the same order get the same replies.
        device: cpu, cuda, mps or auto.
    """
    from dialoom.chat import talk

    one_thread_for_pocket(model)
    check(device, temperature=(temperature, 0), max_new_tokens=(max_new_tokens, 1))
    talk(model, brief=brief, temperature=temperature, max_new_tokens=max_new_tokens, seed=seed, device=device)


def doctor() -> None:
    """Print what a bug report needs: versions, devices, threads, which keys are set (never their values), weights."""
    from dialoom.doctor import examine

    for name, found in examine():
        print(f"{name:<24}{found}")


def build_pocket(*names: Literal["pocket", "pocket-small"], out: Path | None = None, seed: int | None = None,
                 steps: int | None = None, threads: int | None = None) -> None:
    """Build the embedded models from the grammar and fact tables; a build that was stopped goes on.

    Args:
        names: which; both where none is named.
        out: where to. Without it: into the package.
        seed: another seed than the card's.
        steps: another number of optimiser steps than the card's.
        threads: torch threads.
    """
    from dialoom.config import load_config
    from dialoom.models.load import WEIGHTS
    from dialoom.recipes.pocket import PRESETS, PocketConfig
    from dialoom.recipes.pocket_card import build_with_card

    given = {"seed": seed, "steps": steps, "threads": threads}
    overrides = {field: value for field, value in given.items() if value is not None}
    for name in names or list(PRESETS):
        config = load_config(PocketConfig, PRESETS[name], None, overrides)
        say(f"{name}: {build_with_card(config, out or WEIGHTS, say)}")


def pocket_card(name: Literal["pocket", "pocket-small"] = "pocket", /) -> None:
    """Print how an embedded model was made and how good it is.

    Args:
        name: which.
    """
    from dialoom.models.load import WEIGHTS

    card = WEIGHTS / name / "README.md"
    if not card.is_file():
        raise ConfigError(f"{name} has no card ({card} is missing); build it with `dialoom pocket build`")
    print(card.read_text(encoding="utf-8").rstrip())


def check_personas(training: Path, evaluation: Path, /, *, part: Literal["both", "profile", "personality"] = "both",
                   embedding: str = "ngrams", threshold: float | None = None, device: str = "auto") -> None:
    """Say which personas for evaluation are in training as well, or nearly; exit code 2 if any is.

    Args:
        training: JSON lines of personas, profiles or personalities.
        evaluation: the same for evaluation.
        part: what of a persona to compare.
        embedding: ngrams, ngrams:<low>-<high>, st:<sentence-transformers name> or hidden:<model>.
        threshold: the cosine above which two are the same. Without it: stored beside TRAINING, or calibrated on it.
        device: cpu, cuda, mps or auto.
    """
    from dialoom.errors import DataError
    from dialoom.recipes.persona_check import check_files
    from dialoom.scenarios.personas import KINDS

    one_thread_for_pocket(embedding.removeprefix("hidden:"))
    check(device)
    found = check_files(training, evaluation, embedding=embedding, threshold=threshold, device=device, log=say,
                        parts=KINDS if part == "both" else [part])
    if found:
        raise DataError(f"{evaluation}: {len(found)} of its texts stand in {training}, or nearly; remove them from one")


COMMANDS: Mapping[str, Callable[..., Any]] = {
    "eval": evaluate, "show": show, "chat": chat, "doctor": doctor,
    "pocket build": build_pocket, "pocket card": pocket_card, "personas check": check_personas,
}
"""The plain commands by what is typed; a group's name stands before its commands'."""
