"""The people of an ALOE run: whom it trains on, whom it is measured on, and that nobody is both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from dialoom.dialogue import content_id
from dialoom.embed import CachedEmbedder, load_embedder
from dialoom.errors import DataError
from dialoom.pocket.world import personas as world
from dialoom.pocket.world.persona_tables import TRAITS
from dialoom.recipes.aloe_config import RULE, AloeConfig
from dialoom.recipes.persona_check import calibrate, leaks
from dialoom.scenarios.personas import Persona, from_world, read_personas, sentences

Log = Callable[[str], None]
SEEDS = {"train": 10_000, "valid": 20_000, "eval": 30_000}  # of pocket's people: streams apart, the run's seed added


def people(config: AloeConfig, log: Log = print) -> tuple[list[Persona], list[Persona], dict[str, int]]:
    """People to train on, people to evaluate on, and what was left out by reason.

    Pocket's own: for evaluation those in whom a pair of pet and hobby meets that nothing trained on ever held. Out of
    files: split 70/15/15 by a hash of the id where no second file is given. Who is in both sets, or nearly, is left
    out of training.

    Raises: DataError: if a file cannot be read, or nobody is left on one side.
    """
    dropped: Counter[str] = Counter()

    def bad(line: str) -> None:
        dropped["bad persona line"] += 1
        log(f"{line}; left out")

    if not config.personas:
        train = _pocket("train", config.train_count, config.seed)
        test = (read_personas(config.eval_personas, on_bad=bad) if config.eval_personas else
                _pocket(config.split, config.eval_count, config.seed))
    else:
        found = read_personas(config.personas, on_bad=bad)
        parts: dict[str, list[Persona]] = {"train": [], "valid": [], "eval": []}
        for one in found:
            parts[_split(one.id, bool(config.eval_personas))].append(one)
        train = parts["train"]
        test = (read_personas(config.eval_personas, on_bad=bad)
                if config.eval_personas and config.split == "eval" else parts[config.split])
    if config.user == RULE or config.judge == "exact":
        train, test = (_in_pocket(side, dropped, log) for side in (train, test))
    train = apart(config, train, test, dropped, log)
    train, test = train[:config.train_count], test[:config.eval_count]
    if not train or not test:
        raise DataError(f"{len(train)} people to train on and {len(test)} to evaluate on are left; both are needed: "
                        "give more personas, or --eval-personas")
    return train, test, dict(dropped)


def _pocket(split: str, count: int, seed: int) -> list[Persona]:
    kind = "eval" if split == "eval" else "train"
    return [from_world(one) for one in world.make_personas(count, SEEDS[split] + seed, kind)]


def _split(name: str, has_eval: bool) -> str:
    share = int(content_id("aloe split", name), 16) / 16**16
    return "train" if share < 0.7 else "valid" if share < 0.85 or has_eval else "eval"


def _in_pocket(side: Sequence[Persona], dropped: Counter[str], log: Log) -> list[Persona]:
    """Those with facts and traits in the words of pocket's world, which exact users and judges know only."""
    kept = []
    for one in side:
        if one.world.facts and one.world.traits:
            kept.append(one)
        else:
            dropped["not in pocket's words"] += 1
            log(f"persona {one.id}: no {'traits' if one.world.facts else 'facts'} in pocket's words, so the exact "
                "user and judge do not know it; left out (--user and --judge name models)")
    return kept


def apart(config: AloeConfig, train: Sequence[Persona], test: Sequence[Persona], dropped: Counter[str],
          log: Log) -> list[Persona]:
    """Those of `train` whose profile nobody of `test` has, or nearly has; the others are named and counted."""
    embedder = CachedEmbedder(load_embedder(config.embedding, device=config.device))
    limit = config.leak_threshold
    if limit is None:
        profiles = list(dict.fromkeys(one.profile for one in train))
        enough = sum(len(sentences(text)) > 1 for text in profiles) >= 3
        limit = calibrate(embedder, profiles).value if enough else 1.0
    found = leaks(test, train, embedder, {"profile": limit})  # its "evaluation" side is the one to name: training
    profile_of = {one.id: one.profile for one in train}
    bad = {profile_of[leak.evaluation] for leak in found}
    for leak in found:
        log(f"training persona {leak}, who is for evaluation; left out of training")
    kept = [one for one in train if one.profile not in bad]
    dropped["also in evaluation"] += len(train) - len(kept)
    return kept


def shifted(persona: Persona, seed: int) -> Persona:
    """The same life with another character: every trait of pocket's world turned to another of its values.

    Raises: DataError: if the persona has no trait in pocket's words.
    """
    person = persona.world
    if not person.traits:
        raise DataError(f"persona {persona.id}: no traits in pocket's words, so there is nothing to shift")
    turned = {}
    for trait, value in person.traits.items():
        others = [one for one in TRAITS[trait] if one != value]
        turned[trait] = others[int(content_id(seed, persona.id, trait), 16) % len(others)]
    text = world.personality_text(turned, person.pronoun)
    return Persona.of(persona.profile, text)
