"""Typed settings: one frozen class per recipe, read from a preset, then a YAML file, then flags.

A field's docstring is its `--help`. A name or value that cannot be meant is a ConfigError of one line that says where
it was given, what was expected, and the name that may have been meant. Fields in `not_identity` (where to compute, say)
do not change what a run finds, so they take no part in its folder's name.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from dialoom.errors import ConfigError, ModelError
from dialoom.text import MAX_NESTING, UNUSABLE

Values = dict[str, Any]
C = TypeVar("C", bound="Config")
MAX_VALUES = 100_000  # of a file of settings, aliases written out


class Config(BaseModel):
    """Base of every recipe's settings: frozen, unknown names refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True,
                              protected_namespaces=(), allow_inf_nan=False)
    not_identity: ClassVar[frozenset[str]] = frozenset({"device"})

    def values(self) -> Values:
        """The settings as plain JSON values."""
        return self.model_dump(mode="json")

    def identity(self) -> Values:
        """The settings that decide what a run finds, as plain JSON values."""
        return self.deciding(self.values())

    @classmethod
    def deciding(cls, values: Values) -> Values:
        """Those of some settings of this class, as plain JSON values, that decide what a run finds."""
        return {name: value for name, value in values.items() if name not in cls.not_identity}

    def to_yaml(self) -> str:
        """The settings as a file that `load_config` reads back."""
        return yaml.safe_dump(self.values(), sort_keys=False, allow_unicode=True, width=120)


def load_config(config_type: type[C], preset: C | None = None, file: str | Path | None = None,
                overrides: Mapping[str, Any] | None = None) -> C:
    """Settings out of a preset (None: the defaults), over which come a YAML file and then flags.

    Args:
        overrides: values by field name; a name with dots reaches into a nested part (`training.beta`).
    Raises: ConfigError: naming file or flag, the value, what was expected and a near miss.
    """
    values = preset.model_dump() if preset is not None else {}
    from_file = read_yaml(file) if file is not None else {}
    flags = _nested(overrides or {})
    try:
        return config_type.model_validate(_merged(_merged(values, from_file), flags))
    except ValidationError as wrong:
        lines = [_explain(config_type, error, flags, file) for error in wrong.errors()]
        raise ConfigError("; ".join(lines)) from None
    except ModelError as wrong:  # about a value that must not be shown, as an address that holds a key
        raise ConfigError(str(wrong)) from None


def read_yaml(path: str | Path) -> Values:
    """The mapping in a YAML file. Raises ConfigError if there is none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _check_values(node, {})
        data = yaml.safe_load(text)
    except ConfigError as wrong:
        raise ConfigError(f"{path}{wrong}") from None
    except OSError as wrong:
        raise ConfigError(f"{path}: cannot be read ({wrong.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text; expected YAML settings") from None
    except yaml.YAMLError as wrong:
        mark = getattr(wrong, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not YAML ({getattr(wrong, 'problem', None) or wrong})") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply for settings") from None
    except ValueError as wrong:  # the 99th of a month, a number of thousands of digits
        raise ConfigError(f"{path}: holds a value that is none ({wrong})") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise ConfigError(f"{path}: expected settings as `name: value` lines, found {type(data).__name__}")
    return data


def _check_values(node: yaml.Node, sizes: dict[int, int]) -> int:
    """How many values a node holds once its aliases are written out: a few lines of them can stand for billions.

    Raises: ConfigError: if they are more than any settings have, or one holds a character that no setting can.
    """
    if id(node) not in sizes:
        sizes[id(node)] = MAX_VALUES  # what it counts as within itself
        held: list[Any] = []
        if isinstance(node, yaml.ScalarNode):
            if UNUSABLE.search(node.value):
                raise ConfigError(f":{node.start_mark.line + 1}: a value with the unusable character "
                                  f"{UNUSABLE.findall(node.value)[0]!a}; remove it")
        else:
            held = [one for pair in node.value for one in (pair if isinstance(pair, tuple) else [pair])]
        sizes[id(node)] = 1 + sum(_check_values(one, sizes) for one in held)
        if sizes[id(node)] > MAX_VALUES:
            raise ConfigError(f":{node.start_mark.line + 1}: over {MAX_VALUES:,} values; settings repeat none so often "
                              "with aliases")
    return sizes[id(node)]


def near_miss(name: str, known: Iterable[str]) -> str:
    """A half sentence that suggests what `name` may have meant out of `known`, or lists them all."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"expected one of: {', '.join(known)}"


def fields(config_type: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting with its name; those of a nested part come with a dot (`training.beta`)."""
    for name, info in config_type.model_fields.items():
        part = _part(info)
        if part is not None:
            yield from fields(part, f"{prefix}{name}.")
        else:
            yield prefix + name, info


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What changed between two sets of settings, one `name: old -> new` each."""
    lines = []
    for name in dict.fromkeys((*old, *new)):
        left, right = old.get(name), new.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            lines += differences(left, right, f"{prefix}{name}.")
        elif left != right or (name in old) != (name in new):
            left, right = (repr(side[name]) if name in side else "(absent)" for side in (old, new))
            lines.append(f"{prefix}{name}: {left} -> {right}")
    return lines


def _part(info: FieldInfo) -> type[BaseModel] | None:
    """The class of a field that is itself a group of settings."""
    kind = info.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _nested(flat: Mapping[str, Any]) -> Values:
    """Flags by name as a tree. Raises ConfigError where one gives a whole group of which another gives a part."""
    tree: Values = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        if len(path) >= MAX_NESTING:
            raise ConfigError(f"--{name:.40}...: no setting lies {len(path)} groups deep")
        at: Any = tree
        for step in path:
            at = at.setdefault(step, {}) if isinstance(at, dict) else None
        if not isinstance(at, dict) or last in at:
            raise ConfigError(f"--{name.replace('_', '-')}: is given beside a flag that it is a part of, or that is a "
                              "part of it; give one of them")
        at[last] = value
    return tree


def _merged(under: Values, over: Mapping[str, Any]) -> Values:
    merged = dict(under)
    for name, value in over.items():
        below = merged.get(name)
        merged[name] = _merged(below, value) if isinstance(below, dict) and isinstance(value, Mapping) else value
    return merged


def _explain(config_type: type[BaseModel], error: Any, flags: Values, file: str | Path | None) -> str:
    path = [str(step) for step in error["loc"]]
    name = ".".join(path)
    where = _where(path, flags, file)
    if error["type"] == "extra_forbidden":
        owner = _owner(config_type, path[:-1])
        hint = near_miss(path[-1], owner.model_fields) if owner else "it is not a setting"
        return f"{where}: unknown setting; {hint}"
    if error["type"] == "missing":
        return f"{name}: must be given"
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ")
    message = message.replace("Input should be", "expected").split(", unable to")[0]
    if not path:  # a rule over several fields
        return message
    return f"{where}: {message}, got {error['input']!r:.80}"


def _where(path: list[str], flags: Values, file: str | Path | None) -> str:
    """Where a setting was given: `--flag`, or its name in the file."""
    at: Any = flags
    for step in path:
        if not isinstance(at, Mapping) or step not in at:
            break
        at = at[step]
        if not isinstance(at, Mapping):
            return "--" + ".".join(path).replace("_", "-")
    return f"{file}: {'.'.join(path)}" if file is not None else ".".join(path)


def _owner(config_type: type[BaseModel], path: list[str]) -> type[BaseModel] | None:
    owner: type[BaseModel] | None = config_type
    for step in path:
        info = owner.model_fields.get(step) if owner else None
        owner = _part(info) if info else None
    return owner
