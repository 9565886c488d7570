"""A lever on made-up things, for whatever goes on around levers."""

from __future__ import annotations

from typing import ClassVar

from quietcore.agent.pin.levers import GoneError, Lever, RefusedError
from quietcore.agent.pin.plan import Setting
from quietcore.agent.pin.things import IrqLine, Thing, Value

A, B, C = (IrqLine(number, "x") for number in (1, 2, 3))


class Board(Lever):
    """Values on a board; what is not on it is gone. Put it into ``LEVERS`` as ``board``."""

    name: ClassVar[str] = "board"
    thing: ClassVar[type[Thing]] = IrqLine
    word: ClassVar[str] = "value"

    def __init__(self) -> None:
        self.values: dict[IrqLine, Value] = {A: 10, B: 20, C: 30}
        self.locked: set[IrqLine] = set()
        self.bent: dict[Value, Value] = {}
        self.writes: list[tuple[int, Value]] = []

    def read(self, thing: IrqLine) -> Value:
        if thing not in self.values:
            raise GoneError("gone")
        return self.values[thing]

    def write(self, thing: IrqLine, value: Value) -> None:
        self.read(thing)
        if thing in self.locked:
            raise RefusedError("managed")
        self.writes.append((thing.number, value))
        self.values[thing] = self.bent.get(value, value)


def settings(**values: int) -> list[Setting]:
    return [Setting("board", {"a": A, "b": B, "c": C}[name], value) for name, value in values.items()]
