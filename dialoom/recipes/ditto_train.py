"""What is trained for one author in DITTO: SFT, DITTO, SPIN, the ablations, growth, DPO on labelled pairs.

An arm is one adapter. All arms of all authors wear the same base in turn; kept ones lie in `adapters/<author>/`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from dialoom.dialogue import DialogueTree, Turn, content_id
from dialoom.embed import load_embedder
from dialoom.errors import DataError, ModelError, StoreError
from dialoom.evals.winrate import ScoreComparer, author_similarity, exact_style, model_judge, round_robin
from dialoom.files import read_steps
from dialoom.judge import Comparer
from dialoom.models.base import Sampling, ScoringModel
from dialoom.models.load import in_role, load_model
from dialoom.models.local import LocalModel
from dialoom.progress import progress
from dialoom.recipes import ditto_loop as loop
from dialoom.recipes.ditto_config import ABLATIONS, DittoConfig, DPOStage
from dialoom.recipes.ditto_pairs import SequenceStore, drawn_pairs, sampling_steps
from dialoom.recipes.ditto_write import Writer, add_demonstration, reply_path, task_chat, write
from dialoom.recipes.ditto_write import place as place_of
from dialoom.scenarios.demonstrations import Demonstration, Split
from dialoom.select import Pair
from dialoom.store import TreeLog, write_rows, write_whole
from dialoom.train.activations import recomputed
from dialoom.train.pack import TokenPath, score_paths

LONGEST = 1024  # new tokens at most; the paper's limit
LONGEST_NAME = 60  # characters of an author in a file name, which may have 255 bytes
SFT_ARMS = ("sft", "sft_long")  # without a loop after it; `sft_long` does not stop early
Metrics = dict[str, Any]


@dataclass(frozen=True)
class Author:
    """Somebody with demonstrations."""

    name: str
    demos: tuple[Demonstration, ...]

    def split(self, name: Split) -> tuple[Demonstration, ...]:
        """The demonstrations of one split."""
        return tuple(demo for demo in self.demos if demo.split == name)


def file_name(name: str) -> str:
    """An author's name as a file name; different names stay different."""
    safe = "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in name).strip(".")
    return safe if safe == name and 0 < len(name) <= LONGEST_NAME else f"{safe[:LONGEST_NAME]}-{content_id(name)[:6]}"


def arms_of(config: DittoConfig, author: Author) -> list[str]:
    """The adapters to train for an author, in order: `sft` comes first, the others start from it."""
    named = {*config.pool, *config.beside}
    grown = [f"ditto_{count}" for count in sorted(set(config.growth)) if 0 < count < len(author.split("train"))]
    return ["sft", "ditto", *(name for name in ("spin", "sft_long") if name in named),
            *(name.replace("-", "_") for name in ABLATIONS if name in config.ablation), *grown,
            *([f"dpo_{config.labelled}"] if config.labelled else [])]


def arm_settings(config: DittoConfig, arm: str) -> DPOStage:
    """The loop's settings of an arm: DITTO's own but for the one thing the arm is about.

    Without one kind of pair the others are drawn more often in proportion, so every arm learns from as many pairs.
    """
    own = config.dpo
    spin = {"reference": "moving", "resampling": True, "expert": 1.0, "replay": 0.0, "inter": 0.0}
    changes: dict[str, dict[str, Any]] = {
        "spin": spin,
        "no_resampling": {"resampling": False, "samples": own.samples * len(sampling_steps(own))},
        "moving_reference": {"reference": "moving"},
        "no_replay": _without(own, "replay"),
        "no_inter": _without(own, "inter"),
    }
    return DPOStage.model_validate({**own.model_dump(), **changes.get(arm, {})})


def _without(settings: DPOStage, kind: str) -> dict[str, float]:
    shares = {name: getattr(settings, name) for name in ("expert", "replay", "inter")}
    whole, shares[kind] = sum(shares.values()), 0.0
    left = sum(shares.values())
    if not left:
        raise DataError(f"--ablation no-{kind}: dpo.{kind} is the only kind of pair there is; nothing would be left")
    return {name: share * whole / left for name, share in shares.items()}


class Session:
    """The base with its adapter, the tree log and the folder of a run, for as long as it computes.

    Attributes:
        limit: new tokens of a text.
        log: told what a user should know.
    """

    def __init__(self, config: DittoConfig, path: Path, model: LocalModel, trees: TreeLog, limit: int,
                 log: Callable[[str], None]) -> None:
        self.config, self.path, self.model, self.sink, self.limit, self.log = config, path, model, trees, limit, log
        self.sampling = Sampling(1.0, max_new_tokens=limit)
        self._held = trees.trees()
        with loop.seeded(model.module, config.seed, "adapter"):
            model.add_lora(config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_targets or None)
        self.blank = loop.adapter_state(model)

    def tree(self, demo: Demonstration) -> DialogueTree:
        """The tree of a demonstration's task."""
        scenario = demo.scenario
        name = content_id(self.config.seed, scenario.id)
        return self._held.setdefault(name, DialogueTree(scenario, name))

    def adapter_file(self, author: Author, arm: str) -> Path:
        """Where an arm's adapter is kept."""
        return self.path / "adapters" / file_name(author.name) / f"{arm}.safetensors"

    @cached_property
    def judge(self) -> Comparer:
        """Who compares, by the settings. Raises ModelError if the judge's model cannot weigh answers."""
        config = self.config
        if config.judge != "model":
            return rule_of(config)
        judge = in_role(load_model(config.judge_model, device=config.place),
                        "judge") if config.judge_model else self.model
        if not isinstance(judge, ScoringModel):
            raise ModelError(f"{config.judge_model} gives no log-probabilities, so it cannot judge; use a local model")
        return model_judge(judge)

    def wear(self, author: Author, arm: str) -> None:
        """Put a trained arm's adapter onto the base. Raises StoreError if its file is missing, damaged or another's."""
        file, own = self.adapter_file(author, arm), loop.adapter_parameters(self.model)
        try:
            found = load_file(file)
        except (OSError, SafetensorError) as wrong:
            raise StoreError(f"{file}: no adapter can be read there ({wrong}); {self._again(author, arm)}") from None
        if {name: tensor.shape for name, tensor in found.items()} != {name: one.shape for name, one in own.items()}:
            raise StoreError(f"{file}: holds other layers than {self.model.name}'s adapter has; "
                             f"{self._again(author, arm)}")
        loop.set_adapter_state(self.model, found)

    def _again(self, author: Author, arm: str) -> str:
        marker = self.path / "stages" / f"train-{file_name(author.name)}-{arm}.json"
        return f"remove {marker}, and the same command makes it again, from the last checkpoint if work/ is still there"

    def keep(self, author: Author, arm: str) -> None:
        """Keep the adapter the base wears. Raises StoreError if it cannot be written; an older one then stays."""
        tensors = {name: tensor.contiguous() for name, tensor in loop.adapter_state(self.model).items()}
        write_whole(self.adapter_file(author, arm), save(tensors))

    def path_of(self, demo: Demonstration, *, whole: bool = False) -> TokenPath:
        """A demonstration's tokens."""
        return reply_path(self.model, demo.chat, demo.output, whole=whole)

    def logprob(self, demos: Sequence[Demonstration]) -> float:
        """Mean log-probability (nats a token) of the author's texts under the model as it is."""
        paths = [self.path_of(demo) for demo in demos]
        found = score_paths(self.model.module, paths, budget=self.config.token_budget, bf16=self.config.bf16)
        return float(found.sum()) / sum(path.targets for path in paths)


def train_arm(session: Session, author: Author, arm: str, comparer: ScoreComparer) -> Metrics:
    """Train one arm and keep its adapter; returns what its stage notes. Goes on where it was stopped."""
    with recomputed(session.model.module, session.config.gradient_checkpointing):
        noted = _trained_arm(session, author, arm, comparer)
    session.keep(author, arm)
    return noted


def _trained_arm(session: Session, author: Author, arm: str, comparer: ScoreComparer) -> Metrics:
    config, demos = session.config, author.split("train")
    work = session.path / "work" / file_name(author.name) / arm
    if arm.startswith("ditto_"):
        demos = demos[:int(arm.removeprefix("ditto_"))]
    noted: Metrics = {"demonstrations": len(demos)}
    if arm in SFT_ARMS or arm.startswith("ditto_"):
        stop = 0.0 if arm == "sft_long" else config.sft.stop_loss
        noted |= _fine_tune(session, demos, work if arm in SFT_ARMS else work / "sft", stop)
    elif arm.startswith("dpo_") and config.labelled_from == "base":
        loop.set_adapter_state(session.model, session.blank)
    else:
        session.wear(author, "sft")
    if arm.startswith("dpo_"):
        noted |= _labelled(session, author, work)
    elif arm not in SFT_ARMS:
        settings = arm_settings(config, arm)
        voices = Voices(session, author, arm, demos, settings, comparer)
        with progress(f"{arm} as {author.name}", settings.steps) as bar:
            store, said = loop.align(session.model, [session.path_of(demo) for demo in demos], settings, voices,
                                     out=work, seed=config.seed, budget=config.token_budget, bf16=config.bf16,
                                     keep_all=config.keep_checkpoints, log=lambda row: bar.reach(row["step"]))
        noted["distinct_sequences"] = len(store.paths)
        if arm == "ditto":
            write_rows(work / "pairs.jsonl", [pair.to_row() for pair in voices.pairs(store, said)])
    return noted


def _fine_tune(session: Session, demos: Sequence[Demonstration], out: Path, stop_loss: float) -> Metrics:
    config = session.config
    loop.set_adapter_state(session.model, session.blank)
    whole = config.sft.loss_on == "all"
    settings = config.sft.model_copy(update={"stop_loss": stop_loss})
    steps = loop.fine_tune(session.model, [session.path_of(demo, whole=whole) for demo in demos], settings, out=out,
                           seed=config.seed, budget=config.token_budget, bf16=config.bf16)
    noted = read_steps(out / "metrics.jsonl", steps)
    if not noted or "loss" not in noted[-1]:
        raise DataError(f"{out / 'metrics.jsonl'}: holds no loss of step {steps}; remove {out}, and the same command "
                        "trains it again")
    return {"sft_steps": steps, "sft_loss": noted[-1]["loss"]}


def label_copies(config: DittoConfig, author: Author) -> tuple[int, int]:
    """For `labelled` pairs: samples on each task, and how many pairs of them there are to ask about, some to spare."""
    demos = len(author.split("train"))
    copies = max(4, 2 + round((2 * config.labelled / demos) ** 0.5))
    return copies, demos * math.comb(copies, 2)


def _labelled(session: Session, author: Author, out: Path) -> Metrics:
    """DPO on `labelled` pairs of samples, labelled by the judge; pairs it cannot tell apart are not counted.

    Where that leaves too few, training goes on with these, which is told.
    """
    config, demos = session.config, author.split("train")
    trees = [session.tree(demo) for demo in demos]
    wanted, copies = config.labelled, label_copies(config, author)[0]
    writer = Writer(f"{config.labelled_from}_samples", session.model, session.sampling, copies)
    said = write(trees, writer, seed=config.seed, sink=session.sink)
    found: list[TokenPath] = []
    rng = random.Random(f"{config.seed}/labelled/{author.name}")
    asked = [(tree, left, right) for tree, turns in zip(trees, said, strict=True)
             for left, right in combinations(turns, 2)]
    rng.shuffle(asked)
    with session.model.without_adapter():  # a local judge is the untrained model
        verdicts = session.judge.compare([tree.dialogue(place_of(tree)) for tree, _, _ in asked],
                                         [left.text for _, left, _ in asked], [right.text for _, _, right in asked])
    for (tree, left, right), verdict in zip(asked, verdicts, strict=True):
        if verdict in ("left", "right") and len(found) < 2 * wanted:
            pair = (left, right) if verdict == "left" else (right, left)
            found += [turn_path(session, tree, turn) for turn in pair]
    if not found:
        raise DataError(f"{author.name}: the judge could tell none of {len(asked)} pairs of samples apart; "
                        "leave --labelled out")
    if len(found) < 2 * wanted:
        session.log(f"{author.name}: {len(found) // 2} labelled pairs, not {wanted}: so many of {len(asked)} the judge "
                    "could tell apart")
    with progress(f"{config.labelled} labelled pairs as {author.name}", config.dpo.steps) as bar:
        loop.fit_pairs(session.model, found, config.dpo, out=out, seed=config.seed,
                       batch=config.dpo.pairs_per_demo * len(demos), budget=config.token_budget, bf16=config.bf16,
                       log=lambda row: bar.reach(row["step"]))
    return {"labelled_pairs": len(found) // 2}


def turn_path(session: Session, tree: DialogueTree, turn: Turn) -> TokenPath:
    """A written text's tokens after its task."""
    return reply_path(session.model, task_chat(tree.dialogue(place_of(tree))), turn.text,
                      ended=turn.notes.get("finish") != "length")


class Voices:
    """The policy under training as the loop wants it: samples go into the demonstrations' trees, tokens come out."""

    def __init__(self, session: Session, author: Author, arm: str, demos: Sequence[Demonstration], settings: DPOStage,
                 comparer: ScoreComparer) -> None:
        self.session, self.author, self.arm, self.settings, self.comparer = session, author, arm, settings, comparer
        self.start = loop.adapter_state(session.model)
        self.trees = [session.tree(demo) for demo in demos]
        self.demo_turns = [add_demonstration(tree, demo, session.sink)
                           for tree, demo in zip(self.trees, demos, strict=True)]
        self.held = [session.tree(demo) for demo in author.split("validation")]
        for tree in self.held:
            session.sink.add_tree(tree)

    def _writer(self, step: int, sampling: Sampling, copies: int) -> Writer:
        """The policy at a checkpoint. At step 0 it is the SFT policy, whose samples all arms share."""
        name = f"{self.arm}@{step}" if step or self.arm.startswith("ditto_") else "sft"
        return Writer(name, self.session.model, sampling, copies, made_by=self.session.model.fingerprint,
                      notes={"checkpoint": step})

    def say(self, step: int) -> list[list[str]]:
        """M samples on each demonstration's task; no more than DITTO's M where they are not trained on."""
        sampling = Sampling(self.settings.temperature, max_new_tokens=self.session.limit)
        own = self.settings.samples
        copies = min(own, self.session.config.dpo.samples) if step == self.settings.steps else own
        writer = self._writer(step, sampling, copies)
        turns = write(self.trees, writer, seed=self.session.config.seed, sink=self.session.sink)
        return [[turn.id for turn in row] for row in turns]

    def path(self, demo: int, key: str) -> TokenPath:
        """A sample's tokens; one cut at the limit has no end token."""
        return turn_path(self.session, self.trees[demo], self.trees[demo][key])

    def watch(self, step: int, keys: Sequence[Sequence[str]]) -> Metrics:
        """Length and variety of the samples; on the validation tasks, how often the judge prefers them to SFT's."""
        texts = [self.trees[demo][key].text for demo, row in enumerate(keys) for key in row]
        found: Metrics = {"sample_words": sum(len(text.split()) for text in texts) / max(1, len(texts)),
                          "distinct_1": distinct(texts, 1), "distinct_2": distinct(texts, 2)}
        if self.held:
            found |= self._validate(step)
        return found

    def _validate(self, step: int) -> Metrics:
        session = self.session
        copies = session.config.test_samples

        def texts(step: int) -> list[list[str]]:
            rows = write(self.held, self._writer(step, session.sampling, copies), seed=session.config.seed,
                         sink=session.sink)
            return [padded([turn.text for turn in row], copies) for row in rows]
        now = texts(step)
        with loop.wearing(session.model, self.start):
            first = texts(0)
        tasks = [(tree.dialogue(place_of(tree)), {"now": mine, "sft": theirs})
                 for tree, mine, theirs in zip(self.held, now, first, strict=True)]
        won = round_robin(tasks, ("now", "sft"), self.comparer).standing("now").rate
        scores = self.comparer.score([dialogue for dialogue, _ in tasks for _ in range(copies)],
                                     [text for row in now for text in row])
        return {"valid/win_rate_over_sft": won, f"valid/{self.comparer.name}": sum(scores) / len(scores),
                "valid/logprob": session.logprob(self.author.split("validation"))}

    def pairs(self, store: SequenceStore, said: Mapping[int, Sequence[Sequence[str]]]) -> list[Pair]:
        """Every distinct pair that was drawn, as the trees know it.

        Args:
            said: step -> for each demonstration the turns that were sampled.
        """
        names = {(step, demo, id): name for step, rows in store.samples.items()
                 for demo, ids in enumerate(rows) for id, name in zip(ids, said[step][demo], strict=True)}
        found: dict[tuple[str, str], Pair] = {}
        for batch in drawn_pairs(store, self.settings, self.session.config.seed):
            for pair in batch:
                tree, demo = self.trees[pair.demo], self.demo_turns[pair.demo]
                high, low = pair.ranks
                chosen = demo if high is None else tree[names[high, pair.demo, pair.chosen]]
                rejected = tree[names[low, pair.demo, pair.rejected]]
                chat = task_chat(tree.dialogue(place_of(tree)))
                notes = {"chosen_turn": chosen.id, "rejected_turn": rejected.id, "author": self.author.name}
                found[chosen.id, rejected.id] = Pair(f"{chosen.id}-{rejected.id}", chat, chosen.text, rejected.text,
                                                     pair.kind, tree.id, notes=notes)
        return list(found.values())


def padded(texts: Sequence[str], count: int) -> list[str]:
    """As many texts as were asked for; one that came out empty is an empty text, which loses."""
    return [*texts, *[""] * (count - len(texts))]


def distinct(texts: Sequence[str], n: int) -> float:
    """Share of different word n-grams among all n-grams of the texts (Li et al. 2016)."""
    grams = [tuple(words[at:at + n]) for words in (text.lower().split() for text in texts)
             for at in range(len(words) - n + 1)]
    return len(set(grams)) / max(1, len(grams))


def rule_of(config: DittoConfig) -> ScoreComparer:
    """The rule that validates while training: exact where the authors are pocket's, else similarity."""
    if config.judge == "exact" or (config.judge == "auto" and not config.demos):
        return exact_style()
    return author_similarity(load_embedder(config.embedding, device=config.device))

