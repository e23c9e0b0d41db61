"""What a sample looks like to a network: its shape and, in a table, which values make up a column."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Field:
    """One column of a table.

    width: its values in a sample: 1 for a number, one per category else.
    gaps: whether the column may have gaps.
    """

    width: int
    gaps: bool

    @property
    def categorical(self) -> bool:
        return self.width > 1


@dataclass(frozen=True)
class Layout:
    """The shape of one sample, and its columns in order; none where the sample is an image, or just numbers."""

    shape: tuple[int, ...]
    fields: tuple[Field, ...] = ()

    def __post_init__(self) -> None:
        if self.fields and self.shape != (sum(f.width for f in self.fields),):
            raise ValueError(
                f"the columns have {sum(f.width for f in self.fields)} values; expected those of a sample of shape "
                f"{self.shape}; make both from one schema"
            )

    def require_image(self) -> None:
        """Raise a ValueError if a sample is no image, for variants that take nothing else."""
        if len(self.shape) != 3:
            raise ValueError(
                f"shape is {self.shape}; expected that of an image, (channels, height, width); use a fully connected "
                "variant for tables, such as 'deep'"
            )

    def to_json(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "fields": [asdict(f) for f in self.fields]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Layout":
        return cls(tuple(value["shape"]), tuple(Field(**f) for f in value["fields"]))


def channel_problems(channels: Sequence[int]) -> list[str]:
    """Return what is wrong with the number of an image's channels after each of a network's scales."""
    if min(channels, default=0) >= 1:
        return []
    return [f"channels is {list(channels)}; expected one number or more, each 1 or more; mend or remove the others"]
