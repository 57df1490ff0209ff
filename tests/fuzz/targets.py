"""All targets by name."""

from __future__ import annotations

from . import audits, kept, loaders, logs, settings, templates, weights, words
from .checks import Target

TARGETS: dict[str, Target] = {
    target.name: target for module in (loaders, logs, words, settings, templates, kept, audits, weights)
    for target in module.TARGETS
}
