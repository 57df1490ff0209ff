"""Steering a frozen model: a state is read, a small planner acts on it, the action becomes a few soft prompt tokens.

What a model says under an action is `SteeredModel`; how a planner is trained is elsewhere (`train/cloning` fits it to
the model's own replies). Source: DAT, arXiv 2406.11978. The surprising choice: the prefix of an action also depends on
the state where there is a clone, since the planner then adds to what the clone does. A prefix of no tokens is the
unsteered model; one of zeros is not, since attention shares itself out over it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from dialoom.dialogue import Chat, content_id
from dialoom.errors import ConfigError, ModelError, StoreError
from dialoom.files import read_json
from dialoom.models.base import ChatModel, Completion, Sampling
from dialoom.models.forward import written
from dialoom.models.load import is_endpoint, load_model
from dialoom.models.local import LocalModel
from dialoom.models.place import Place
from dialoom.store import write_whole

if TYPE_CHECKING:
    from dialoom.models.engine import Position
    from dialoom.models.exploration import Exploration, Fixed

WEIGHTS, CARD = "steering.safetensors", "steering.json"
PLANNER = "planner"
"""The folder of a run in which its planner is."""
NOT_HERE = "{name} cannot be steered (its embeddings cannot be reached); use pocket or hf:<name>"
DIGITS = 4  # of an action in a turn's notes
EMBEDDED_AT_ONCE = 8192  # rows of the vocabulary
OUTPUTS = ("sphere", "corner", "tanh", "silu", "linear")  # how a planner ends
SHARPNESS = {True: 1.5, False: 25.0}  # of "corner" in training and after, in units of a direction's typical number


class Normalizer(nn.Module):  # type: ignore[misc]
    """Running mean and variance of states; two of them merge to what one would have seen. Fresh, it changes nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("squares", torch.zeros(width, dtype=torch.float64))

    @classmethod
    def of(cls, mean: Tensor, std: Tensor) -> Normalizer:
        """One with this mean and deviation, as of a single state."""
        found = cls(len(mean))
        found.count, found.mean, found.squares = found.count + 1, mean.double(), std.double().square()
        return found

    @property
    def variance(self) -> Tensor:
        """(width,) biased variance of what was seen; 1 before two states and where nothing varied."""
        found = self.squares / self.count.clamp(min=1)
        return torch.where(found > 0, found, torch.ones_like(found))

    def add(self, states: Tensor) -> None:
        """Take (states, width) into account. Changes the normaliser."""
        if not len(states):
            return
        seen = Normalizer(self.mean.shape[0])
        rows = states.detach().to(self.mean)
        seen.count = rows.new_tensor(len(rows))
        seen.mean = rows.mean(0)
        seen.squares = (rows - seen.mean).square().sum(0)
        self.load_state_dict(self.merged(seen).state_dict())

    def merged(self, other: Normalizer) -> Normalizer:
        """One that has seen what both saw. Source: Chan, Golub and LeVeque 1979, the pairwise update."""
        found = Normalizer(self.mean.shape[0])
        found.count = self.count + other.count
        share = other.count / found.count.clamp(min=1)
        apart = other.mean - self.mean
        found.mean = self.mean + apart * share
        found.squares = self.squares + other.squares + apart.square() * self.count * share
        return found

    def forward(self, states: Tensor) -> Tensor:
        """(states, width) in float32, each number of mean 0 and variance 1."""
        return ((states.to(self.mean) - self.mean) / self.variance.sqrt()).float()


Output = Literal["sphere", "corner", "tanh", "silu", "linear"]


@dataclass(frozen=True)
class PlannerShape:
    """Sizes of a planner.

    Attributes:
        state: width of the states it reads.
        action: numbers in an action; 64 or 128 in the paper.
        hidden: widths of the layers between; two of the state's width in the paper.
        output: "sphere": actions of length `norm`; "corner": the same, drawn to the corner of one sort of replies
            (see `corner`), weakly while it is trained; "tanh": each number within norm / sqrt(action), so never longer
            than that; "silu" and "linear": unbounded, what a clone has.
        norm: > 0.
    """

    state: int
    action: int = 64
    hidden: tuple[int, ...] = (256, 256)
    output: Output = "sphere"
    norm: float = 1.0

    def __post_init__(self) -> None:
        if self.output not in OUTPUTS or not self.norm > 0 or min(self.state, self.action, *self.hidden) < 1:
            raise ConfigError(f"a planner of {self} cannot be built; widths are positive, norm is above 0 and output "
                              f"is one of {', '.join(OUTPUTS)}")


class Planner(nn.Module):  # type: ignore[misc]
    """From (states, width) to (states, action): normalise, linear layers with SiLU between, the output's bound.

    Source: arXiv 2406.11978, its policy; trained by cloning and by reinforcement alike.
    """

    def __init__(self, shape: PlannerShape, *, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.normalizer = Normalizer(shape.state)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            widths = (shape.state, *shape.hidden)
            layers: list[nn.Module] = []
            for wide, narrow in itertools.pairwise(widths):
                layers += [nn.Linear(wide, narrow), nn.SiLU()]
            self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], shape.action))

    @classmethod
    def of(cls, model: LocalModel, action: int = 64, *, hidden: tuple[int, ...] = (256, 256),
           output: Output = "sphere", norm: float | None = None, seed: int = 0) -> Planner:
        """One for the states of `model`, untrained; `norm` None is the mean length of its embeddings."""
        scale = embedding_norm(model) if norm is None else norm
        return cls(PlannerShape(state_width(model), action, hidden, output, scale), seed=seed)

    def forward(self, states: Tensor) -> Tensor:
        """(states, action) actions."""
        raw = self.layers(self.normalizer(states))
        if self.shape.output == "sphere":
            return on_sphere(raw, self.shape.norm)
        if self.shape.output == "corner":
            sharp = SHARPNESS[self.training] * self.shape.action ** 0.5
            return corner((sharp * on_sphere(raw, 1.0)).softmax(-1), self.shape.norm)
        if self.shape.output == "tanh":
            return raw.tanh() * (self.shape.norm / self.shape.action ** 0.5)
        return nn.functional.silu(raw) if self.shape.output == "silu" else raw


def on_sphere(actions: Tensor, norm: float) -> Tensor:
    """Each row stretched to length `norm`; a row of zeros stays one."""
    return nn.functional.normalize(actions, dim=-1) * norm


def corner(shares: Tensor, norm: float) -> Tensor:
    """(rows, sorts) shares of sorts of replies as actions of length `norm`; a single sort's is its corner.

    Corners are as far from each other as they can be on the sphere, and add up to nothing.
    """
    return on_sphere(shares - shares.mean(-1, keepdim=True), norm)


def input_embeddings(model: LocalModel) -> Tensor:
    """(vocabulary, width) float32 embeddings as the layers get them, on the CPU."""
    table = model.module.get_input_embeddings()
    with torch.no_grad():
        ids = torch.arange(table.weight.shape[0], device=model.device).split(EMBEDDED_AT_ONCE)
        return torch.cat([table(part).float().cpu() for part in ids])


def embedding_norm(model: LocalModel) -> float:
    """Mean length of an input embedding: the scale an action has unless another is asked for."""
    return float(input_embeddings(model).norm(dim=-1).mean())


def state_width(model: LocalModel) -> int:
    """Numbers in one state of the model."""
    return int(model.module.config.get_text_config().hidden_size)


def embedding_components(embeddings: Tensor, count: int) -> Tensor:
    """(count, width) orthonormal directions in which embeddings vary most, widest first.

    The mean is taken off first and not kept. Each row's largest entry is positive, so no row flips between machines.

    Args:
        embeddings: (tokens, width).
        count: at most the width.
    Raises: ConfigError: if more directions are asked for than there are.
    """
    width = embeddings.shape[1]
    if not 1 <= count <= width:
        raise ConfigError(f"{count} principal directions were asked of embeddings {width} wide; use a smaller action, "
                          "fewer prefix tokens, or one direction repeated")
    mean = embeddings.mean(0, dtype=torch.float64)
    spread = torch.zeros(width, width, dtype=torch.float64)
    for rows in embeddings.split(EMBEDDED_AT_ONCE):  # the whole table in float64 may not fit
        apart = rows.double() - mean
        spread += apart.T @ apart
    found = torch.linalg.eigh(spread).eigenvectors.T.flip(0)[:count]
    largest = found.gather(1, found.abs().argmax(1, keepdim=True))
    return (found * largest.sign()).float().contiguous()


class UpMapping(nn.Module):  # type: ignore[misc]
    """From (actions, action) to (actions, tokens, width) soft prefix tokens, linearly.

    Built by `pca` (fixed, no cloning needed) or `linear` (trained by cloning).

    Attributes:
        tokens: soft tokens of one prefix; 2 in the paper, 0 leaves the model unsteered.
        repeated: one token is made and repeated, as released; otherwise each token has directions of its own.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, tokens: int, repeated: bool) -> None:
        """
        Args:
            weight: (1, action, width) if repeated, otherwise (tokens, action, width).
            bias: (tokens, width), or None for a mapping that is not trained.
        """
        super().__init__()
        self.tokens, self.repeated = tokens, repeated
        if bias is None:
            self.register_buffer("weight", weight)
            self.register_buffer("bias", None)
        else:
            self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    @classmethod
    def pca(cls, model: LocalModel, action: int = 64, *, tokens: int = 2, repeated: bool = True) -> UpMapping:
        """Along the principal directions of the model's input embeddings; a token is as long as its action.

        Raises: ConfigError: if the embeddings have fewer directions than are needed (action, or action * tokens).
        """
        _check_tokens(tokens)
        parts = 1 if repeated else tokens
        width = model.module.get_input_embeddings().weight.shape[-1]
        rows = embedding_components(input_embeddings(model), action * parts) if parts else torch.empty(0, width)
        return cls(rows.view(parts, action, width), None, tokens=tokens, repeated=repeated)

    @classmethod
    def linear(cls, model: LocalModel, action: int = 64, *, tokens: int = 2, seed: int = 0) -> UpMapping:
        """To be trained; at first its tokens are about the size of an embedding for an action of length 1.

        The bias of each token starts at the mean embedding, which a model takes for an ordinary token.
        """
        _check_tokens(tokens)
        table = input_embeddings(model)
        draw = torch.Generator().manual_seed(seed)
        weight = torch.randn(tokens, action, table.shape[1], generator=draw)
        scale = float(table.norm(dim=-1).mean()) / table.shape[1] ** 0.5
        return cls(weight * scale, table.mean(0).repeat(tokens, 1), tokens=tokens, repeated=False)

    def forward(self, actions: Tensor) -> Tensor:
        """(actions, tokens, width)."""
        found = torch.einsum("na,tad->ntd", actions, self.weight)
        if self.repeated:
            found = found.expand(-1, self.tokens, -1)
        return found if self.bias is None else found + self.bias


def _check_tokens(tokens: int) -> None:
    if tokens < 0:
        raise ConfigError(f"a prefix of {tokens} tokens cannot be; give 2, or 0 for none")


class Steering(nn.Module):  # type: ignore[misc]
    """What steers one model: a planner, an up-mapping, and perhaps a clone that the planner adds to.

    Attributes:
        planner: makes the actions; None: all are zero, which is the clone by itself.
        clone: reproduces the unsteered model through the mapping; None where the mapping is a PCA.
        position: where its prefixes are meant to stand (see `SteeredModel`).
    """

    def __init__(self, mapping: UpMapping, planner: Planner | None = None, clone: Planner | None = None, *,
                 position: Position = "start") -> None:
        """Raises ConfigError if the parts do not fit together."""
        super().__init__()
        if position not in ("start", "end"):
            raise ConfigError(f"soft tokens cannot stand at {position!r}; give start or end")
        self.mapping, self.planner, self.clone, self.position = mapping, planner, clone, position
        self._hashed: tuple[object, str] | None = None
        sizes = {part.shape.action for part in (planner, clone) if part is not None} | {int(mapping.weight.shape[1])}
        widths = {part.shape.state for part in (planner, clone) if part is not None}
        if len(sizes) != 1 or len(widths) > 1:
            raise ConfigError(f"planner, clone and mapping have actions of {sorted(sizes)} numbers on states of "
                              f"{sorted(widths)}; all must agree")

    def plan(self, states: Tensor) -> Tensor:
        """(states, action) actions."""
        if self.planner is None:
            return states.new_zeros(len(states), self.mapping.weight.shape[1], dtype=torch.float32)
        found: Tensor = self.planner(states)
        return found

    def prefixes(self, states: Tensor, actions: Tensor) -> Tensor:
        """(states, tokens, width) soft tokens of actions taken in these states."""
        found: Tensor = self.mapping(actions if self.clone is None else self.clone(states) + actions)
        return found

    @property
    def fingerprint(self) -> str:
        """16 hex digits over shapes and weights; remade when a weight changed."""
        state = written([*self.parameters(), *self.buffers()])
        if self._hashed is None or self._hashed[0] != state:
            self._hashed = (state, self._hash())
        return self._hashed[1]

    def _hash(self) -> str:
        digest = hashlib.blake2b(json.dumps(self._card(), sort_keys=True).encode(), digest_size=8)
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _card(self) -> dict[str, Any]:
        shapes = {name: None if part is None else asdict(part.shape)
                  for name, part in (("planner", self.planner), ("clone", self.clone))}
        return {**shapes, "position": self.position,
                "mapping": {"shape": list(self.mapping.weight.shape), "tokens": self.mapping.tokens,
                            "repeated": self.mapping.repeated, "trained": self.mapping.bias is not None}}

    def save(self, folder: str | Path) -> None:
        """Write the weights as safetensors, the shapes as JSON."""
        from safetensors.torch import save
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_whole(Path(folder) / WEIGHTS, save(tensors))
        card = {**self._card(), "fingerprint": self.fingerprint}
        write_whole(Path(folder) / CARD, json.dumps(card, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> Steering:
        """What was saved there. Raises: StoreError: if it cannot be read."""
        from safetensors import SafetensorError
        from safetensors.torch import load
        try:
            card = read_json(Path(folder) / CARD, dict)
            tensors = load((Path(folder) / WEIGHTS).read_bytes())
            made = card["mapping"]
            shape = made["shape"]
            bias = torch.zeros(shape[0], shape[2]) if made["trained"] else None
            mapping = UpMapping(torch.zeros(shape), bias, tokens=made["tokens"], repeated=made["repeated"])
            planner, clone = (None if card[name] is None else
                              Planner(PlannerShape(**{**card[name], "hidden": tuple(card[name]["hidden"])}))
                              for name in ("planner", "clone"))
            found = cls(mapping, planner, clone, position=card["position"])
            found.load_state_dict(tensors)
            if found.fingerprint != card.get("fingerprint", found.fingerprint):
                raise ValueError("its numbers are not those that were saved")
        except (OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError, SafetensorError) as wrong:
            said = " ".join(str(wrong).split())[:200]
            raise StoreError(f"{folder}: no planner can be read there ({said}); train it again") from None
        return found


@dataclass(frozen=True)
class Plan:
    """What a steered model is about to do in each of some chats: (chats, width) states and (chats, action) actions."""

    states: Tensor
    actions: Tensor


class SteeredModel:
    """A local model under a `Steering`, which freezes it: a chat model like any other.

    `chat` plans and says. Whoever wants the states and actions calls `plan`, notes them, and hands them to `say`.

    Attributes:
        position: soft tokens stand after the last prompt token ("end": what was read is kept) or after the first
            ("start", as released: every prompt is read anew).
    """

    def __init__(self, model: ChatModel, steering: Steering, *, position: Position | None = None,
                 exploration: Exploration | Fixed | None = None, name: str | None = None) -> None:
        """
        Args:
            position: None is where the steering is meant to stand.
        Raises: ModelError: if the model cannot be steered, or not by this one.
        """
        position = position or steering.position
        if not isinstance(model, LocalModel):
            raise ModelError(NOT_HERE.format(name=model.name))
        if position not in ("start", "end"):
            raise ConfigError(f"soft tokens cannot stand at {position!r}; give start or end")
        try:
            model.states([])
        except ModelError as error:
            raise ModelError(f"{model.name} cannot be steered: {error}; use pocket or a model with full attention"
                             ) from None
        width = int(model.module.get_input_embeddings().weight.shape[-1])
        parts = [part.shape.state for part in (steering.planner, steering.clone) if part is not None]
        if int(steering.mapping.weight.shape[2]) != width or any(part != state_width(model) for part in parts):
            raise ModelError(f"{model.name} has states of {state_width(model)} numbers and embeddings of {width}; the "
                             f"planner was made for {parts or 'any'} and {steering.mapping.weight.shape[2]}: train one "
                             "for this model")
        for parameter in model.module.parameters():  # frozen weights need not be looked at for every reply
            parameter.requires_grad_(False)
        self.model, self.steering, self.position, self.exploration = model, steering.eval(), position, exploration
        self.name = name or f"{model.name}+planner"
        self._norm = steering.planner.shape.norm if steering.planner is not None else embedding_norm(model)

    @property
    def fingerprint(self) -> str:
        """Changes with the model, the planner, the place of the prefix and the exploration."""
        how = asdict(self.exploration) if self.exploration else None
        return content_id(self.model.fingerprint, self.steering.fingerprint, self.position, how)

    def plan(self, chats: Sequence[Chat], keys: Sequence[str], *, anew: bool = False) -> Plan:
        """States of the chats (without any prefix, float32) and the actions taken in them; `keys` seed exploration.

        Args:
            anew: read the chats as if nothing had been read before, so that not even rounding depends on it.
        """
        if anew and self.model.engine is not None:
            self.model.engine.cache.clear()
        if len(keys) != len(chats):
            raise ModelError(f"{self.name}: {len(chats)} chats came with {len(keys)} keys; give one key for each chat")
        states = self.model.states(chats).float().to(self.steering.mapping.weight.device)
        if not chats:
            states = states.reshape(0, state_width(self.model))
        with torch.no_grad():
            actions = self.steering.plan(states)
            if self.exploration is not None:
                actions = self.exploration(actions, keys, self._norm)
        return Plan(states, actions)

    def say(self, plan: Plan, chats: Sequence[Chat], sampling: Sampling, keys: Sequence[str]) -> list[Completion]:
        """Continue each chat under the action planned for it (or any other), which the reply notes as `action`."""
        with torch.no_grad():
            prefixes = self.steering.prefixes(plan.states, plan.actions)
        said = self.model.chat(chats, sampling, keys, prefixes=list(prefixes), position=self.position)
        return [replace(reply, notes={"action": [round(number, DIGITS) for number in action]})
                for reply, action in zip(said, plan.actions.tolist(), strict=True)]

    def chat(self, chats: Sequence[Chat], sampling: Sampling, keys: Sequence[str]) -> list[Completion]:
        """Continue each chat with one assistant message; `keys` (one each) seed text and exploration."""
        return self.say(self.plan(chats, keys), chats, sampling, keys)


def load_steered(model: ChatModel | str, folder: str | Path, *, device: str | Place = "auto") -> SteeredModel:
    """The model under the planner that a `dialoom dat` run trained, or that `Steering.save` wrote.

    Args:
        model: loaded, or what `load_model` loads.
        folder: the run's, or the planner's own.
    Raises:
        ModelError: if the model cannot be steered, or is not as wide as the one it was trained for.
        StoreError: if no planner is there, or it cannot be read.
    """
    if isinstance(model, str) and is_endpoint(model):  # before it asks for a key
        raise ModelError(NOT_HERE.format(name=model))
    places = (Path(folder), Path(folder) / PLANNER)
    found = next((place for place in places if (place / CARD).is_file()), None)
    if found is None:
        raise StoreError(f"{folder}: holds no planner ({CARD} and {WEIGHTS}, or a folder {PLANNER}/ with them); give "
                         "the folder of a finished `dialoom dat`")
    return SteeredModel(load_model(model, device=device) if isinstance(model, str) else model, Steering.load(found))
