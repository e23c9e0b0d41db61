"""Which stage runs next, and on which device: nothing here runs anything, or knows how long it takes."""

from collections.abc import Callable, Sequence, Set

from flows.devices import Desk, Device
from sevenfold.params import Params
from sevenfold.pipeline import Stage


class Schedule:
    """Stages that wait, run and have ended. Whoever runs them asks what to begin, and says what has ended.

    A stage begins as soon as those before it have ended and a device is free; what needs a failed one is never begun.
    """

    def __init__(self, plan: Sequence[Stage], desk: Desk, wants_gpu: Callable[[Stage], bool]) -> None:
        """Schedule the stages of `plan`; `wants_gpu` says of one whether it is for a GPU where there is one."""
        self._waiting = {stage.name: stage for stage in plan}
        self._running: dict[str, tuple[Stage, Device]] = {}
        self._failed: set[str] = set()
        self._kept_back: dict[str, str] = {}
        self._desk, self._wants_gpu = desk, wants_gpu

    @property
    def is_done(self) -> bool:
        return not self._waiting and not self._running

    @property
    def is_blocked(self) -> bool:
        """Whether nothing runs, and what could is kept from every device that it may have by other runs."""
        return bool(self._waiting) and not self._running

    def begin(self) -> list[tuple[Stage, Device]]:
        """Return the stages that begin now, each with the device that is its own until `end` is called."""
        begun = []
        for stage in self._ready():
            if (device := self._desk.lend(wants_gpu=self._wants_gpu(stage))) is not None:
                self._running[stage.name] = (self._waiting.pop(stage.name), device)
                begun.append((stage, device))
        return begun

    def keep_back(self) -> list[tuple[Stage, str]]:
        """Return the stages that will not be begun any more, each with the failed one that it had to have."""
        found: list[tuple[Stage, str]] = []
        while lost := [(s, c) for s in self._ready() if (c := _obstacle(s, self._failed | self._kept_back.keys()))]:
            for stage, cause in lost:
                self._kept_back[stage.name] = self._kept_back.get(cause, cause)
                found.append((self._waiting.pop(stage.name), self._kept_back[stage.name]))
        return found

    def end(self, name: str, *, failed: bool) -> None:
        """Take note that a stage has ended, and take back its device."""
        _, device = self._running.pop(name)
        self._desk.give_back(device)
        if failed:
            self._failed.add(name)

    def _ready(self) -> list[Stage]:
        unfinished = self._waiting.keys() | self._running.keys()
        return [stage for stage in self._waiting.values() if stage.before.isdisjoint(unfinished)]


def _obstacle(stage: Stage, lost: Set[str]) -> str | None:
    """Return a stage without which this one cannot run: one that it needs, or, if all that it uses are lost, one of these."""
    lacking = stage.needs & lost or (stage.uses if stage.uses and stage.uses <= lost else frozenset())
    return min(lacking, default=None)


def wants_gpu(settings: Params, stage: Stage) -> bool:
    """Say whether a stage is for a GPU where there is one: a training is, unless params.yaml says that it needs none."""
    return stage.kind == "train" and settings.gpus(stage.name.partition("@")[2]) != 0
