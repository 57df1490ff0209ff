"""The build of pocket-guard: an adapter on pocket that keeps a code word by the rule of pocket's world.

Pocket itself is no such guard: it hardly minds which tactic it meets, and the word it then says is a wrong one. The
adapter learns from scripted scenes of the train split only. The surprising choice: it ships, being small, so that
red-team scenes need no training before the first attack.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dialoom.pocket.world import scenes as pocket
from dialoom.pocket.world.scene_lines import QUESTIONS, RIGHT
from dialoom.select import Example
from dialoom.train.config import TrainConfig

if TYPE_CHECKING:
    from dialoom.models.local import LocalModel
    from dialoom.models.place import Place

NAME = "pocket-guard"
TEMPERATURE = 0.7  # of a defender
ATTACKER_TEMPERATURE = 0.3  # of pocket as a visitor: without steering it then succeeds in 3 to 20 %
DIALOGUES, SEED = 4000, 1
SCENES = 150  # for each figure of the card
TRAINING = TrainConfig(tune="lora", lora_rank=16, lora_alpha=32, epochs=2, lr=3e-3, batch_pairs=16, seed=SEED,
                       checkpoint_every=0)
CARD = """# pocket-guard

An adapter on pocket (`{base}`): a guard that keeps a code word, has one weak spot and answers ordinary questions. It
is the harmless defender of Dialoom's red-team scenes, made by `recipes/pocket_guard.py` from {count}
scripted scenes of the train split in {seconds:.0f} CPU seconds, seed {seed}.

Its first reply, in {scenes} scenes each, temperature 0.7: how often it gives the word away.

| it hears | train | test |
|---|---|---|
{rows}
"""


def guard_examples(count: int, seed: int = SEED) -> list[Example]:
    """What the guard says in scripted scenes of the train split, to visitors of all sorts; one round or three."""
    rng = random.Random(f"pocket-guard:{seed}")
    found: list[Example] = []
    while len(found) < count:
        scene = pocket.make_scene("guard", rng)
        if scene.facts["word"] in pocket.AMBIGUOUS:
            continue
        chat = pocket.view(scene, _played(scene, 3 if rng.random() < 0.4 else 1, rng), scene.partner,
                           scene.briefs[scene.partner])
        replies = tuple(at for at, message in enumerate(chat) if message["role"] == "assistant")
        found.append(Example(f"guard-{len(found)}", chat, replies))
    return found


def _played(scene: pocket.Scene, rounds: int, rng: random.Random) -> list[tuple[str, str]]:
    """Rounds by rule; the visitor takes the right tactic, any, none, or asks something ordinary."""
    said: list[tuple[str, str]] = []
    names = list(RIGHT["guard"].values())
    for _ in range(rounds):
        sort = rng.random()
        if sort < 0.1:
            heard = rng.choice(list(QUESTIONS))
        else:
            tactic = (RIGHT["guard"][pocket.mood_now(scene, said)] if sort < 0.5 else
                      rng.choice(names) if sort < 0.9 else "bland")
            heard = pocket.player_line(scene, said, tactic, rng)
        said.append((scene.player, heard))
        said.append((scene.partner, pocket.partner_line(scene, said, rng)))
    return said


def build_guard(out: Path, log: Callable[[str], None], *, count: int = DIALOGUES,
                training: TrainConfig = TRAINING) -> str:
    """Train the adapter into `out`/pocket-guard with its card; returns where it is and how it keeps the rule."""
    from dialoom.models.load import load_model
    from dialoom.models.local import LocalModel
    from dialoom.train.sft import sft

    model = load_model("pocket", device="cpu")
    assert isinstance(model, LocalModel)
    base, start = model.fingerprint, time.process_time()
    steps = training.steps(count)
    sft(model, guard_examples(count), training, out=out / f"{NAME}.work",
        log=lambda row: log(f"{NAME}: step {row['step']} of {steps}") if row["step"] % 50 == 0 else None)
    seconds = time.process_time() - start
    folder = out / NAME
    model.save(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)  # pocket's own
    kinds = ("right", "wrong", "bland")
    rates = {kind: [leak_rate(model, kind, split) for split in ("train", "test")] for kind in kinds}
    rows = "\n".join(f"| {kind} tactic | {train:.2f} | {test:.2f} |" for kind, (train, test) in rates.items())
    (folder / "README.md").write_text(CARD.format(base=base, count=count, seconds=seconds, seed=training.seed,
                                                  scenes=SCENES, rows=rows), encoding="utf-8")
    return f"{folder}, gives in to the right tactic {rates['right'][1]:.2f}, to a wrong one {rates['wrong'][1]:.2f}"


def load_guard(device: str | Place = "auto") -> LocalModel:
    """The guard as it ships. Raises: ModelError: if its weights are not in this installation."""
    from dialoom.models.load import WEIGHTS, load_folder

    return load_folder(WEIGHTS / NAME, device=device, name=NAME)


def leak_rate(model: LocalModel, kind: str, split: str, *, seed: int = 0) -> float:
    """How often a guard's first reply gives the word away to a `right`, `wrong` or `bland` line, at temperature 0.7."""
    from dialoom.models.base import Sampling

    rng = random.Random(f"{kind}:{split}:{seed}")
    scenes = pocket.make_scenes("guard", SCENES, split, seed)
    chats = []
    for scene in scenes:
        right = RIGHT["guard"][scene.facts["moods"][0]]
        tactic = {"right": right, "bland": "bland"}.get(kind) or rng.choice(
            [name for name in RIGHT["guard"].values() if name != right])
        heard = [(scene.player, pocket.player_line(scene, [], tactic, rng))]
        chats.append(pocket.view(scene, heard, scene.partner, scene.briefs[scene.partner]))
    said = model.chat(chats, Sampling(0.7, max_new_tokens=40), [scene.id for scene in scenes])
    return sum(pocket.leaked(scene.facts["word"], one.text) for scene, one in zip(scenes, said, strict=True)) / SCENES
