"""The plain commands of `dialoom`: those that are no recipe. Each imports what it needs when it is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from dialoom.errors import ConfigError
from dialoom.models.place import Place

if TYPE_CHECKING:
    from dialoom.models.spending import Endpoints

Where = Annotated[Place, Parameter(name="*", group="Where local models lie")]
"""`--device`, `--dtype`, `--device-map`, `--quantize`, `--replicas`: the same as recipes have."""
ANYWHERE = Place()
Several = Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")]
"""A flag that takes all the words up to the next flag."""


def say(line: str) -> None:
    """One line of what a run has to tell."""
    print(line, flush=True)


def note(line: str) -> None:
    """One line that is no result: results can be piped without it."""
    print(line, file=sys.stderr, flush=True)


def one_thread_for_pocket(*specs: str) -> None:
    """Where only pocket models compute, give torch one thread unless the user says otherwise.

    They are too small to share a step between threads: on two busy cores a step of two threads took many times as long.
    """
    if all(spec.startswith("pocket") for spec in specs if spec):
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def is_launched() -> bool:
    """Whether `accelerate launch` or torchrun started this as one of several processes."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1 and "RANK" in os.environ


def check(device: str | Place = "auto", **numbers: tuple[float, float]) -> None:
    """Refuse a device nobody has, and numbers (value, least) that are too small, before anything is loaded."""
    Place.of(device)
    for name, (value, least) in numbers.items():
        if not value >= least:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: expected at least {least:g}")


def _spending(budget: float, prices: tuple[str, ...], extra: tuple[str, ...]) -> Endpoints:
    from dialoom.config import load_config
    from dialoom.models.spending import Endpoints

    return load_config(Endpoints, None, None, {"budget": budget, "prices": prices, "extra": extra})


def evaluate(name: str, /, *, model: str = "pocket", partner: str = "", judge: str = "", data: str = "",
             strategies: str = "", planner: Path | None = None, limit: int = 0, seed: int = 1, brief: str = "",
             max_new_tokens: int = 48, device: Where = ANYWHERE, budget: float = 0, prices: Several = (),
             extra: Several = (), out: Path | None = None) -> None:
    """Run one evaluation on any model, or look at a file of dialogues.

    Args:
        name: flipflop, are_you_sure, recall, misinformation, team; quality, mtbench; diversity; social or redteam.
        model: pocket, pocket-small, hf:<name or path>[+<adapter>], openai:<model> or run:<folder>.
        partner: the other member of the team; whom redteam attacks (without one: pocket's guard); or who stands
            opposite in social scenes (without one: pocket's world by its rule).
        judge: a model that rates answers (quality, mtbench), says which turns need their context (diversity), or
            whether a reply does a behaviour (redteam), or rates people on seven points (social).
        data: questions: TriviaQA JSON or JSONL, or CSV with question,answer. For quality and diversity dialogues in
            ShareGPT's layout, for mtbench questions in MT-Bench's, for redteam behaviours in HarmBench's. Empty:
            the pocket world's.
        strategies: a JSON list of strategies, which diversity looks for.
        planner: the folder of a `dialoom dat` run (or of its planner) that steers the model under test.
        limit: use at most this many questions, conversations or user turns; 0 means all, or what is usual.
        seed: draws wrong answers and phrasings.
        brief: system message of the model under test.
        max_new_tokens: length limit of one reply.
        budget: dollars that endpoints may cost; 0: no cap. A larger one goes on where a smaller one stopped.
        prices: what endpoints cost, each as <model>=<read>/<written>, dollars for a million tokens.
        extra: a JSON object of fields added to every request to an endpoint, or <model>=<object>.
        out: also write the rows to this file, as results.json has them, and what endpoints cost beside it.
    """
    from dialoom.evaluate import run_named
    from dialoom.models.ledger import until_done

    one_thread_for_pocket(model, partner, judge)
    check(device, limit=(limit, 0), max_new_tokens=(max_new_tokens, 1), budget=(budget, 0))
    command = (name, model, partner, judge, data, strategies, limit, seed, brief, max_new_tokens,
               *([str(planner)] if planner else []))
    with until_done(_spending(budget, prices, extra), "eval", *command, log=note, out=out):
        run_named(name, model, partner=partner, judge=judge, data=data, strategies=strategies, planner=planner,
                  limit=limit, seed=seed, brief=brief, max_new_tokens=max_new_tokens, device=device, out=out)


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


def chat(model: str = "", /, *, beside: str = "", planner: Path | None = None, brief: str = "",
         temperature: float = 0.7, max_new_tokens: int = 200, seed: int = 0, device: Where = ANYWHERE,
         budget: float = 0, prices: Several = (), extra: Several = ()) -> None:
    """Talk with a model, or with two side by side. /help lists what can be typed.

    Args:
        model: pocket, pocket-small, hf:<name or path>[+<adapter>], openai:<model>, run:<folder>, or a run's folder.
            With a planner it may be left out: the one that the run steered.
        beside: a second model, to switch to or to hear with it; of a run the model it began from, of a steered model
            itself without the planner.
        planner: the folder of a `dialoom dat` run (or of its planner) that steers the model.
        brief: system message.
        temperature: 0 is greedy.
        max_new_tokens: length limit of one reply.
        seed: the same words in the same order get the same replies.
        budget: dollars that endpoints may cost; 0: no cap.
        prices: what endpoints cost, each as <model>=<read>/<written>, dollars for a million tokens.
        extra: a JSON object of fields added to every request to an endpoint, or <model>=<object>.
    """
    from dialoom.chat import talk
    from dialoom.models.ledger import Ledger, recording

    one_thread_for_pocket(model, beside)
    check(device, temperature=(temperature, 0), max_new_tokens=(max_new_tokens, 1), budget=(budget, 0))
    ledger = Ledger(None, _spending(budget, prices, extra))
    ledger.flag = "--"
    with recording(ledger):
        talk(model, beside=beside, planner=planner, brief=brief, temperature=temperature,
             max_new_tokens=max_new_tokens, seed=seed, device=device)
    for line in ledger.told():
        note(line)


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


def demo(*, out: Path = Path("runs/demo"), seed: int = 1, jobs: int = 0) -> None:
    """Run every recipe on the embedded models, then show each against its baselines, and every model everywhere.

    Args:
        out: the folder; a demonstration that was stopped goes on there.
        seed: decides everything drawn.
        jobs: recipes at a time; 0 means two where there are two processors.
    """
    from dialoom.demo import demo as run

    check(jobs=(jobs, 0))
    if is_launched():
        raise ConfigError("the demonstration starts its recipes itself; run it without a launcher")
    run(out, seed=seed, jobs=jobs, log=say)


def scorecard(model: str, /, *, planner: Path | None = None, evals: Several = (), partner: str = "pocket",
              judge: str = "", author: str = "", data: str = "", limit: int = 30, seed: int = 1,
              device: Where = ANYWHERE, budget: float = 0, prices: Several = (), extra: Several = (),
              out: Path | None = None) -> None:
    """Run every evaluation that needs no file of yours on one model or endpoint; print a card with intervals.

    Args:
        model: pocket, pocket-small, hf:<name or path>[+<adapter>], openai:<model> or run:<folder>.
        planner: the folder of a `dialoom dat` run (or of its planner) that steers the model.
        evals: only these: flipflop, are_you_sure, recall, misinformation, alignment, author, chat, social,
            redteam (as the guard), team, attack (as the visitor).
        partner: who stands opposite in scenes and debates, and whom the win rate is over.
        judge: a model that rates replies. Without it pocket's exact judges, which read pocket's words only.
        author: one of pocket's authors; how much more its texts are like theirs than the partner's.
        data: your own questions for the first four: TriviaQA JSON or JSONL, or CSV with question,answer.
        limit: items of each evaluation; 0 means all.
        seed: draws them.
        budget: dollars that endpoints may cost; 0: no cap. A larger one goes on where a smaller one stopped.
        prices: what endpoints cost, each as <model>=<read>/<written>, dollars for a million tokens.
        extra: a JSON object of fields added to every request to an endpoint, or <model>=<object>.
        out: also write the card here, the rows beside it as .json, and what endpoints cost as .usage.json.
    """
    from dialoom.models.ledger import until_done
    from dialoom.scorecard import run_scorecard

    one_thread_for_pocket(model, partner, judge)
    check(device, limit=(limit, 0), budget=(budget, 0))
    command = (model, evals, partner, judge, author, data, limit, seed, *([str(planner)] if planner else []))
    with until_done(_spending(budget, prices, extra), "scorecard", *command, log=note, out=out):
        say(run_scorecard(model, planner=planner, evals=evals, partner=partner, judge=judge, author=author, data=data,
                          limit=limit, seed=seed, device=device, out=out))


def export(run: Path, /, *, to: str, out: Path, arm: str = "", merge: bool = False, license: str = "") -> None:
    """Write what a run learned from, or the model it trained, as other tools read it, with a card.

    Args:
        run: a run's folder.
        to: trl (preference pairs), sft, kto, sharegpt or parquet: one row for each trained turn; or model.
        out: a folder of its own, made where missing.
        arm: another training set or model of the run than its main one.
        merge: with `--to model`, add an adapter into its base's weights.
        license: for the card. Without it: pocket's where nothing else took part, else unknown.
    """
    from dialoom.export import export_run

    export_run(run, to, out, arm=arm, merge=merge, licence=license, log=say)


def view(*runs: Path, html: Path | None = None, port: int = 8770, limit: int = 0, open: bool = True) -> None:
    """Look at a run in the browser, live while it goes on, or at two side by side.

    Args:
        runs: the folder of a run; or of two.
        html: write one self-contained HTML file instead, and serve nothing.
        port: where to listen, on this machine only; 0 takes any free one.
        limit: how many turns of each run to hold; 0 means what is usual (200,000; in a file 60,000).
        open: open the browser, where there is a terminal.
    """
    from dialoom.view import view as look

    check(limit=(limit, 0), port=(port, 0))
    look(runs, html=html, port=port, limit=limit, open_browser=open)


def audit(source: Path, /, *, model: str = "", arm: str = "", judge: str = "", embedding: str = "ngrams",
          max_length: int = 0, cut_at: int = 0, rows: int = 4, limit: int = 0, open: str = "", html: Path | None = None,
          json: bool = False, strict: bool = False, device: str = "auto", budget: float = 0, prices: Several = (),
          extra: Several = ()) -> None:
    """Look at training data before training: tokens, masks, and what simulators get wrong; exit code 2 on errors.

    Args:
        source: a run's folder, or a file: transcripts (ShareGPT, messages), pairs (TRL's layout), a trees.jsonl.
        model: whose template and tokenizer the rows are for. Without it: the run's; of a file, tokens are left out.
        arm: another training set of the run than its main one; harden: what the defender of a red-teaming run learned.
        judge: a model that says whether simulated users leave their persona (50 dialogues are asked about).
        embedding: by which users are held against their personas, as `dialoom personas check` takes it.
        max_length: tokens of a row that the trainer keeps; 0: the model's context.
        cut_at: tokens from which on a reply was cut off; 0: what the run's settings say.
        rows: how many rows of the first batch to show.
        limit: look at this many dialogues and rows; 0 means all.
        open: print the dialogue, turn or row of this id (or its beginning), and nothing else.
        html: also write one self-contained HTML file.
        json: print JSON.
        strict: exit code 2 on warnings, too.
        device: where a judge or an embedding computes: cpu, cuda, mps or auto.
        budget: dollars that a judge behind a server may cost; 0: no cap. A larger one goes on where a smaller one
            stopped.
        prices: what it costs, as <model>=<read>/<written>, dollars for a million tokens.
        extra: a JSON object of fields added to every request to it.
    """
    from dialoom.audit import audit as examine
    from dialoom.models.ledger import until_done

    one_thread_for_pocket(model, judge)
    check(device, max_length=(max_length, 0), cut_at=(cut_at, 0), rows=(rows, 0), limit=(limit, 0),
          budget=(budget, 0))
    with until_done(_spending(budget, prices, extra), "audit", str(source), judge, limit, log=note):
        examine(source, model=model, arm=arm, judge=judge, embedding=embedding, max_length=max_length, cut_at=cut_at,
                rows=rows, limit=limit, open_id=open, strict=strict, as_json=json, html=html, device=device, log=say)


COMMANDS: Mapping[str, Callable[..., Any]] = {
    "demo": demo, "eval": evaluate, "scorecard": scorecard, "show": show, "view": view, "chat": chat, "doctor": doctor,
    "audit": audit, "export": export, "pocket build": build_pocket, "pocket card": pocket_card,
    "personas check": check_personas,
}
"""The plain commands by what is typed; a group's name stands before its commands'."""
