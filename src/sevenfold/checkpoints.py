"""Where a training was when it stopped: tensors and facts in one safetensors file, so that it goes on and ends the same."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from sevenfold import files


@dataclass(frozen=True)
class Checkpoint:
    """A place for the state of one training.

    path: the file; it appears whole or not at all.
    identity: of spec, data, settings and code. The state of a training with another identity is not taken up.
    seconds: save so often.
    """

    path: Path
    identity: str
    seconds: float

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write the state in place of the one before."""
        plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        metadata = {"identity": self.identity, "facts": json.dumps(facts)}
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with files.whole(self.path) as draft:
            safetensors.torch.save_file(plain, draft, metadata=metadata)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors and facts of this training, or None where there are none that can be used."""
        if not self.path.is_file() or files.header_problem(self.path):
            return None
        try:
            with safetensors.safe_open(self.path, framework="pt") as handle:
                metadata = handle.metadata() or {}
                if metadata.get("identity") != self.identity:
                    return None
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  # it is no mapping
        except (safetensors.SafetensorError, OSError):
            return None  # damaged: the training begins anew, which costs time and nothing else
        facts: dict[str, Any] = json.loads(metadata["facts"])
        return tensors, facts

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
