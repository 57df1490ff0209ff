"""One command in several processes (`accelerate launch`, torchrun): the first does it, the rest join in training.

The others know nothing of recipes. They wait to be told of a training, bring up the same weights, take its steps, and
wait again. So one process writes the run's folder, no recipe has to know of several, and every recipe whose training
goes through `loop.fit` can be launched. Surprising choice: what is told (rows, loss, settings) goes over the wire;
weights do not. Each process loads them from where the first one did, or out of the training's folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState

from dialoom.errors import DialoomError, ModelError, TrainingError
from dialoom.models.load import load_folder
from dialoom.models.local import LocalModel
from dialoom.models.place import Origin, Place

if TYPE_CHECKING:
    from dialoom.train.config import TrainConfig
    from dialoom.train.rows import Row, TrainableModel

START = "start"  # in a training's folder: the weights it starts from, while the others read them
GONE = ("onnection closed", "onnection was likely closed", "onnection reset", "Broken pipe", "remote process exited",
        "NCCL")  # as gloo and NCCL say
WAIT = timedelta(days=30)  # between two trainings lie hours of dialogues; who dies is noticed by the closed connection


@dataclass(frozen=True)
class Training:
    """What the others must know to take part: the arguments of `loop.fit`, and which weights it starts from."""

    rows: Sequence[Row]
    objective: Callable[..., Any]
    config: TrainConfig
    out: Path
    validated: bool
    name: str
    fingerprint: str
    place: Place
    origin: Origin | None


def take_part(lead: Callable[[], None]) -> None:
    """Do `lead` in the first process, and in the others every training that it comes to.

    Raises: TrainingError: if another process is gone in the middle of a training, or before all is done.
    """
    with _all_there():  # one may be gone before all have met
        crew = _Crew()
    try:
        with _all_there():
            if crew.leads:
                _lead(crew, lead)
            else:
                crew.follow()
    finally:
        crew.part()


def _lead(crew: _Crew, lead: Callable[[], None]) -> None:
    _crews.append(crew)
    try:
        lead()
    finally:
        _crews.remove(crew)
        with contextlib.suppress(RuntimeError):  # they may be gone, and why is being raised
            crew.tell(None)


@contextlib.contextmanager
def _all_there() -> Iterator[None]:
    """Turn what torch raises when a connection closes into one line."""
    try:
        yield
    except RuntimeError as wrong:
        unmet = isinstance(wrong, torch.distributed.DistNetworkError | torch.distributed.DistStoreError)
        if isinstance(wrong, DialoomError) or not (unmet or any(sign in str(wrong) for sign in GONE)):
            raise
        raise TrainingError(f"another process is gone ({' '.join(str(wrong).split())[:160]}); see what it said; the "
                            "same command continues") from None


def announce(model: TrainableModel, rows: Sequence[Row], objective: Callable[..., Any], config: TrainConfig, *,
             out: Path, validated: bool) -> None:
    """Have the other processes join a training that this one is about to begin; nothing happens where it is alone."""
    if not _crews:
        return
    if not isinstance(model, LocalModel):
        raise TrainingError(f"{model.name} cannot be trained by several processes; run the same command without a "
                            "launcher")
    dtype: Any = str(model.module.dtype).removeprefix("torch.")
    place = model.origin.place if model.origin else Place(dtype=dtype)
    _crews[-1].begin(model, Training(rows, objective, config, out.resolve(), validated, model.name, model.fingerprint,
                                     replace(place, device=model.device.type), model.origin))


_crews: list[_Crew] = []  # of this process, if it is the first of several


class _Crew:
    """The processes of one launch, as one of them sees them."""

    def __init__(self) -> None:
        asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # else transformers reads weights in one process only
        state = PartialState(cpu=asked or not torch.cuda.is_available(), timeout=WAIT)
        self.leads = state.process_index == 0
        self.group = torch.distributed.new_group(backend="gloo", timeout=WAIT)
        self.model: LocalModel | None = None  # of the training before: DPO goes on with what SFT left

    def part(self) -> None:
        """Close the connections: a thread of gloo's that still runs when Python ends takes the process down."""
        if torch.distributed.get_backend() == "gloo":  # NCCL's would wait for processes that may be gone
            torch.distributed.destroy_process_group()
        else:
            torch.distributed.destroy_process_group(self.group)

    def tell(self, what: Training | None) -> None:
        torch.distributed.broadcast_object_list([what], src=0, group=self.group)

    def told(self) -> Training | None:
        held: list[Any] = [None]
        torch.distributed.broadcast_object_list(held, src=0, group=self.group)
        found: Training | None = held[0]
        return found

    def all_say(self, claim: bool) -> bool:
        said: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(said, claim, group=self.group)
        return all(said)

    def begin(self, model: LocalModel, training: Training) -> None:
        """Tell the others of a training, and see that they start from the same weights."""
        self.tell(training)
        if self.all_say(True):
            return
        draft = training.out / START
        model.save(draft)
        self.all_say(True)
        same = self.all_say(True)
        shutil.rmtree(draft, ignore_errors=True)
        if not same:
            raise TrainingError(f"{training.out}: another process has other weights of {model.name} than this one; all "
                                "must see the same folders, and have the same versions and kind of device")

    def follow(self) -> None:
        """Take part in trainings until the first process says that there are no more."""
        warnings.simplefilter("ignore")  # the first process says it
        while (training := self.told()) is not None:
            self._join(training)

    def _join(self, training: Training) -> None:
        from dialoom.train.loop import fit

        held, self.model = self.model, None
        model = held if held is not None and held.fingerprint == training.fingerprint else _loaded(training)
        if not self.all_say(model is not None):
            self.all_say(True)  # it is written
            if model is None:
                model = load_folder(training.out / START, device=training.place, name=training.name)
            if not self.all_say(model.fingerprint == training.fingerprint):
                return
        assert model is not None
        fit(model, training.rows, training.objective, training.config, out=training.out,
            validate=_done_by_the_first if training.validated else None)
        self.model = model


def _loaded(training: Training) -> LocalModel | None:
    """The weights from where the first process had them; None if it has changed them since, or they are not here."""
    origin = training.origin
    if origin is None:
        return None
    try:
        model = LocalModel.load(origin.path, adapter=origin.adapter, device=training.place, name=training.name)
    except ModelError:
        return None
    return model if model.fingerprint == training.fingerprint else None


def _done_by_the_first(model: Any) -> Mapping[str, float]:
    """A validation: its metrics come from the first process."""
    return {}
