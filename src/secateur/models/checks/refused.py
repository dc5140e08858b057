"""Host classes that no family reads, with the reason."""

import sys
from collections.abc import Mapping

REASONS: dict[str, str] = {}


def refuse(reasons: Mapping[str, str]) -> None:
    """Note why models of these classes, "module:Class", belong to no family."""
    REASONS.update(reasons)


def why_refused(model: object) -> str:
    """The reason for the class of a model or a base of it after a colon, if one is noted."""
    for name, reason in REASONS.items():
        module, _, cls = name.partition(":")
        host = getattr(sys.modules.get(module), cls, None)
        if isinstance(host, type) and isinstance(model, host):
            return f": {reason}"
    return ""
