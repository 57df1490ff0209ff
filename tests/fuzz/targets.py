"""All targets by name."""

from __future__ import annotations

from . import loaders, logs, settings, templates, words
from .checks import Target

TARGETS: dict[str, Target] = {
    target.name: target for module in (loaders, logs, words, settings, templates) for target in module.TARGETS
}
