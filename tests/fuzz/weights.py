"""Readers of files beside weights: planners, checkpoints, tokenizers, replies to clone."""

from __future__ import annotations

import shutil
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from dialoom.errors import DataError, DialoomError, ModelError, StoreError

from .checks import Target, refused
from .mutants import PART
from .scratch import empty, write
from .templates import POCKET, _template

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "config.json", "chat_template.jinja")


def _steering(data: bytes) -> None:
    """A planner that can be read is the one that was saved, or names itself as another; else it is refused by name."""
    import torch

    from dialoom.models.steering import CARD, WEIGHTS, Steering

    folder = empty("steering")
    card, _, tensors = data.partition(PART)
    (folder / CARD).write_bytes(card)
    (folder / WEIGHTS).write_bytes(tensors)
    found = refused(lambda: Steering.load(folder), StoreError)
    if isinstance(found, DialoomError):
        assert str(folder) in str(found)
        return
    states = torch.zeros(2, found.planner.shape.state if found.planner is not None else 48)
    assert found.prefixes(states, found.plan(states)).shape[0] == 2


def _checkpoint(data: bytes) -> None:
    """Of a damaged newest checkpoint and a whole older one, what is loaded is one that was saved."""
    import torch

    from dialoom.train import checkpoint

    root = empty("checkpoints")
    for step in (1, 2):
        shutil.copytree(_checkpoints() / f"step-{step:08d}", root / f"step-{step:08d}")
    manifest, state, tensors = [*data.split(PART, 2), b"", b""][:3]
    for name, part in ((checkpoint.MANIFEST, manifest), (checkpoint.STATE, state), (checkpoint.WEIGHTS, tensors)):
        (root / "step-00000002" / name).write_bytes(part)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = checkpoint.load_newest(root)
    assert found is not None and found.state == {"step": found.step}
    assert torch.equal(found.weights["a"], torch.full((3,), float(found.step)))


@cache
def _checkpoints() -> Path:
    import torch

    from dialoom.train import checkpoint

    root = empty("made-checkpoints")
    for step in (1, 2):
        tensors = {"a": torch.full((3,), float(step))}
        checkpoint.save(root, step, tensors, tensors, {"step": step})
    return root


def _tokenizer(data: bytes) -> None:
    """A model's tokenizer and configuration: a reader of chats, or one line about the model."""
    from dialoom.audit.tokens import load_reader

    folder = empty("tokenizer")
    for name, part in zip(TOKENIZER, data.split(PART), strict=False):
        (folder / name).write_bytes(part)
    found = refused(lambda: load_reader(f"hf:{folder}"), ModelError)
    if not isinstance(found, DialoomError):
        ids = refused(lambda: found.reply_ids([{"role": "user", "content": "Why?"}], "So."), ModelError)
        assert isinstance(ids, DialoomError) or 0 <= ids[1] <= len(ids[0])


class _Model:
    """A template and a context; no weights."""

    template = property(lambda self: _template())
    context = 512


def _clone(data: bytes) -> None:
    """Replies to clone: token ids that end a turn, or the file and the line."""
    from dialoom.train.cloning import read_replies

    path = write("replies.csv", data)
    model: Any = _Model()
    found = refused(lambda: read_replies(path, model), DataError)
    if isinstance(found, DialoomError):
        assert str(path) in str(found)
    else:
        assert all(one.prompt and one.reply[-1] == _template().end for one in found)


def _made(kind: str) -> bytes:
    """Good files of a kind."""
    if kind == "steering":
        from torch import zeros

        from dialoom.models.steering import CARD, WEIGHTS, Planner, PlannerShape, Steering, UpMapping

        folder, mapping = empty("made-steering"), UpMapping(zeros(1, 2, 4), None, tokens=2, repeated=True)
        Steering(mapping, Planner(PlannerShape(4, 2, (3,)))).save(folder)
        return (folder / CARD).read_bytes() + PART + (folder / WEIGHTS).read_bytes()
    if kind == "checkpoint":
        from dialoom.train.checkpoint import MANIFEST, STATE, WEIGHTS

        return PART.join((_checkpoints() / "step-00000002" / name).read_bytes() for name in (MANIFEST, STATE, WEIGHTS))
    from tests.tiny import tiny_tokenizer

    folder = empty("made-tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    shutil.copy(POCKET / "config.json", folder)
    return PART.join((folder / name).read_bytes() for name in TOKENIZER)


TARGETS = [
    Target("steering", _steering, (_made("steering"),), heavy=True),
    Target("checkpoint", _checkpoint, (_made("checkpoint"),), heavy=True),
    Target("tokenizer", _tokenizer, (_made("tokenizer"),), heavy=True),
    Target("replies-to-clone", _clone, (b'input,target\nWhy?,So.\n"a, b","c\nd"\n', b"n,target,input\n1,So.,Why?\n"),
           heavy=True),
]
