"""One computation of a sweep, as plain data."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Job:
    """What to compute. Two jobs of equal content are one.

    Args:
        kind: which computation; a name that may stand in a file's.
        settings: all that its result depends on, as JSON values.
        version: of the code that computes this kind. Raise it where results change: they are computed again.
    """

    kind: str
    settings: Mapping[str, Any]
    version: int = 1

    @property
    def key(self) -> str:
        """A short hash of the content.

        >>> Job("trained", {"seed": 0}).key == Job("trained", {"seed": 0}).key
        True
        """
        content = json.dumps([self.kind, self.version, self.settings], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """Kind and key: the name of its file."""
        return f"{self.kind}-{self.key}"
