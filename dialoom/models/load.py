"""From what the user writes after `--model` to a model. Nothing heavy is imported before a kind is known."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dialoom.errors import ModelError
from dialoom.files import read_json
from dialoom.models.place import Place

if TYPE_CHECKING:
    from dialoom.models.base import ChatModel
    from dialoom.models.local import LocalModel

M = TypeVar("M", bound="ChatModel")
_watching: list[Callable[[str, ChatModel], None]] = []
POCKETS = ("pocket", "pocket-small")
WEIGHTS = Path(__file__).parent.parent / "pocket" / "weights"
KINDS = "pocket, pocket-small, hf:<name or path>[+<adapter>], openai:<model>[@<address>], run:<folder>"


def weights_hash(folder: Path) -> str:
    """12 hex digits naming the weights in a model's folder; every table made with pocket quotes pocket's."""
    return hashlib.blake2b((folder / "model.safetensors").read_bytes(), digest_size=6).hexdigest()


def load_model(spec: str, *, device: str | Place = "auto") -> ChatModel:
    """The model that `spec` names.

    Args:
        spec: `pocket`, `pocket-small`, `hf:<name or path>[+<adapter>]`, `openai:<model>[@<address>[,<address>...]]` or
            `run:<folder>` (what a run trained: the folder's `model/` or `adapter/`).
        device: auto, cuda, mps or cpu, or a whole `Place`; endpoints take no notice of it. With more than one
            replica: copies in Ray actors, which talk and weigh options, and cannot be trained.
    Raises: ModelError: one line that says what was meant instead, or what to do first.
    """
    model = _load(spec, device)
    if not is_endpoint(spec):
        for notice in _watching[-1:]:
            notice(spec, model)
    return model


def watch(notice: Callable[[str, ChatModel], None]) -> Callable[[], None]:
    """Tell `notice` of every model of this machine that `load_model` loads, which it may refuse by an error.

    Which is told is a matter of the process, as with the ledger of endpoints; the last one that asked is.

    Returns: what ends it.
    """
    _watching.append(notice)

    def end() -> None:
        if notice in _watching:
            _watching.remove(notice)

    return end


def _load(spec: str, device: str | Place) -> ChatModel:
    kind, colon, rest = spec.partition(":")
    if Place.of(device).replicas > 1 and not is_endpoint(spec):
        from dialoom.models.replicas import ray_replicas
        return ray_replicas(spec, Place.of(device))
    if spec in POCKETS:
        return _local(_pocket(spec), device=device, name=spec, base=spec)
    if colon and rest and kind == "openai":
        if "," in rest.partition("@http")[2]:
            from dialoom.models.replicas import load_endpoints
            return load_endpoints(rest)
        from dialoom.models.endpoint import load_endpoint
        return load_endpoint(rest)
    if colon and rest and kind == "hf":
        base, _, adapter = _split_adapter(rest)
        return _local(base, adapter=adapter or None, device=device, name=spec, base=base)
    if colon and rest and kind == "run":
        return load_folder(rest, device=device, name=spec)
    raise _unknown(spec)


def check_spec(spec: str) -> None:
    """Raise the ModelError of `load_model` if a spec names no kind of model; nothing is loaded."""
    kind, colon, rest = spec.partition(":")
    if spec not in POCKETS and not (colon and rest and kind in ("hf", "openai", "run")):
        raise _unknown(spec)


def tokenizer_of(spec: str) -> Any:
    """The tokenizer of an `hf:` model, without its weights. Raises ModelError if it cannot be read."""
    from dialoom.models.pretrained import hub_is_there, one_line, read_tokenizer
    base, _, _ = _split_adapter(spec.removeprefix("hf:"))
    with one_line(spec):
        return read_tokenizer(base, local_files_only=is_folder(base) or not hub_is_there())


def _unknown(spec: str) -> ModelError:
    return ModelError(f"unknown model {spec!r}{_near_miss(spec)}; models are {KINDS}")


def is_endpoint(spec: str) -> bool:
    """Whether a spec names a model behind a server, whose weights are not here: it can be asked, not trained."""
    return spec.startswith("openai:")


def in_role(model: M, role: str) -> M:
    """The model as it is asked in a role (partner, user, judge, ...): endpoints account for each by itself."""
    named: Callable[[str], M] | None = getattr(model, "in_role", None)
    return model if named is None else named(role)


class Models:
    """The models of a run, loaded when first asked for, each once."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._loaded: dict[str, ChatModel] = {}

    def get(self, spec: str, role: str) -> ChatModel:
        """The model of a spec, as it is asked in a role."""
        if spec not in self._loaded:
            self._loaded[spec] = load_model(spec, device=self.place)
        return in_role(self._loaded[spec], role)


def _near_miss(spec: str) -> str:
    """What was probably meant, as a question, or nothing."""
    kind, colon, rest = spec.partition(":")
    if colon and not rest:
        return ": nothing stands after the colon"
    if is_folder(spec):
        is_run = any((Path(spec) / part).is_dir() for part in ("model", "adapter", "authors", "planner"))
        return f"; did you mean {'run' if is_run else 'hf'}:{spec}?"
    near = difflib.get_close_matches(kind.lower(), ["hf", "openai", "run"] if colon else POCKETS, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]}:{rest}?" if colon else f"; did you mean {near[0]}?"
    return f"; did you mean hf:{spec}?" if "/" in spec and not colon else ""


def _pocket(name: str) -> str:
    folder = WEIGHTS / name
    if not (folder / "config.json").is_file():
        raise ModelError(f"the weights of {name} are not in this installation ({folder}); build them with "
                         "`dialoom pocket build`")
    return str(folder)


def absolute(spec: str) -> str:
    """The same model for a process that works in another folder: the folders of a spec from the root on."""
    kind, _, rest = spec.partition(":")
    if kind == "run":
        return f"run:{Path(rest).resolve()}"
    if kind != "hf":
        return spec
    return "hf:" + "".join(str(Path(part).resolve()) if part and is_folder(part) else part
                           for part in _split_adapter(rest))


def _split_adapter(text: str) -> tuple[str, str, str]:
    """Base and adapter at the plus sign; a plus inside an existing folder's name is not one."""
    return (text, "", "") if is_folder(text) else text.partition("+")


def is_folder(text: str | Path) -> bool:
    """Whether a folder of this name is there; a name that no file can have (too long, with NUL) is none."""
    try:
        return Path(text).is_dir()
    except (OSError, ValueError):
        return False


def load_folder(folder: str | Path, *, device: str | Place = "auto", name: str) -> LocalModel:
    """What was trained into a folder: a whole model, or an adapter, which names its base (pocket, or any spec).

    Args:
        folder: holds the model or the adapter itself, or is a run's, with `model/` or `adapter/` in it.
        name: what the model is called.
    Raises: ModelError: if nothing trained lies there, or it cannot be loaded.
    """
    folder = Path(folder)
    if not is_folder(folder):
        raise ModelError(f"{name}: {folder} is no folder")
    at = folder if (folder / "adapter_config.json").is_file() or (folder / "config.json").is_file() else None
    at = at or next((folder / part for part in ("model", "adapter") if (folder / part).is_dir()), None)
    if at is None:
        raise ModelError(f"{name}: {folder} {_instead(folder)}")
    if not (at / "adapter_config.json").is_file():
        return _local(str(at), device=device, name=name)
    base = _read_json(at / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{name}: {at / 'adapter_config.json'} names no base_model_name_or_path, so the model below "
                         "the adapter is unknown; add it")
    if base.startswith("hf:"):
        base = base.removeprefix("hf:")
    below = _pocket(base) if base in POCKETS else base
    return _local(below, adapter=str(at), device=device, name=name, base=base)


def _instead(folder: Path) -> str:
    """What a folder holds in place of a model, and what to give then."""
    if any((place / "steering.json").is_file() for place in (folder, folder / "planner")):
        return ("holds a planner, which steers a model and is none; give that model (`model` in the run's config.yaml) "
                f"with --planner {folder}")
    authors = sorted(part.parent.name for kind in ("model", "adapter") for part in folder.glob(f"authors/*/{kind}"))
    if authors:
        return (f"holds a model for each of its authors; give one, as run:{folder / 'authors' / authors[0]} "
                f"({', '.join(authors)})")
    return "holds neither model/ nor adapter/; let its training finish first"


def _read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(path, dict, error=ModelError)
    return found


def _local(path: str, *, device: str | Place, name: str, adapter: str | None = None,
           base: str | None = None) -> LocalModel:
    from dialoom.models.local import LocalModel
    place = Place.of(device)
    if base in POCKETS:
        place = replace(place, quantize="none")  # nothing to save in so small a model
    return LocalModel.load(path, adapter=adapter, device=place, name=name, base=base)
