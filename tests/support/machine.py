"""Actors as lists of instructions on shared memory, for the model checker.

Each instruction is one atomic access, so the checker interleaves them all. A payload takes two
stores and two loads and can be seen torn. The store of a signal is delayed: it sits in its actor's
buffer, where only later stores and a fence wait for it and loads pass it, until it is flushed (what
x86 does). A wait is `hc_flag_wait`: spin, count oneself as sleeper, look again, sleep.

Any actor may be killed at any point, and the driver may close the exchange at any point, where
`faults` are on; poison then ends every wait.
"""

from collections.abc import Iterator
from typing import NamedTuple

from support.checker import Violation

RUN, COUNTED, LOOKED, ASLEEP, ENDED, DEAD = range(6)


class Op(NamedTuple):
    """One instruction. value: what it stores or expects; jump: instructions it may skip."""

    name: str
    address: str = ""
    value: int = 0
    jump: int = 0


class Actor(NamedTuple):
    at: int = 0
    phase: int = RUN
    seen: int = 0
    delayed: tuple[str, int] | None = None


class State(NamedTuple):
    actors: tuple[Actor, ...]
    memory: tuple[int, ...]
    poison: bool = False


class Machine:
    """A model of actors by name.

    Args:
        programs: the instructions of each.
        faults: actors may be killed and the exchange closed, at any point.
        cap: where poisoned, a sleep ends by itself (the 100 ms cap of the futex sleep).
    """

    def __init__(
        self, programs: dict[str, list[Op]], *, faults: bool = False, cap: bool = True
    ) -> None:
        self.names, self.programs = list(programs), list(programs.values())
        self.faults, self.cap = faults, cap
        addresses = sorted({op.address for ops in self.programs for op in ops} - {""})
        self.index = {address: number for number, address in enumerate(addresses)}

    def start(self) -> State:
        return State(tuple(Actor() for _ in self.names), (0,) * len(self.index))

    def is_end(self, state: State) -> bool:
        return all(actor.phase in (ENDED, DEAD) for actor in state.actors)

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        for who, actor in enumerate(state.actors):
            name, program = self.names[who], self.programs[who]
            if actor.delayed is not None:
                yield f"{name}: its store is seen", self.flush(state, who)
            if actor.phase in (ENDED, DEAD):
                continue
            if self.faults and not state.poison and name != "watchdog":
                yield f"{name}: killed", self.move(state, who, phase=DEAD)
            if actor.at == len(program):
                yield f"{name}: ends", self.move(state, who, phase=ENDED)
                continue
            op = program[actor.at]
            for after in getattr(self, f"do_{op.name}")(state, who, op):
                phase = ("", " (counted)", " (looked)", " (asleep)", " (ended)", "")
                text = f"{name}: {op.name} {op.address} {op.value}"
                yield text + phase[after.actors[who].phase], after
        if self.faults and not state.poison:
            dead = any(actor.phase == DEAD for actor in state.actors)
            yield "watcher: poison" if dead else "driver: poison", self.poisoned(state)
        if self.cap and state.poison:
            for who, actor in enumerate(state.actors):
                if actor.phase == ASLEEP:
                    yield f"{self.names[who]}: sleep capped", self.move(state, who, phase=RUN)

    # -- helpers ---------------------------------------------------------------------------------
    def move(self, state: State, who: int, **changes: object) -> State:
        actor = state.actors[who]._replace(**changes)
        return state._replace(actors=(*state.actors[:who], actor, *state.actors[who + 1 :]))

    def on(self, state: State, who: int, skip: int = 0, **changes: object) -> State:
        """To the next instruction, or `skip` further."""
        at = state.actors[who].at + 1 + skip
        return self.move(state, who, at=at, phase=RUN, **changes)

    def write(self, state: State, address: str, value: int) -> State:
        number = self.index[address]
        return state._replace(memory=(*state.memory[:number], value, *state.memory[number + 1 :]))

    def read(self, state: State, address: str) -> int:
        return state.memory[self.index[address]]

    def flush(self, state: State, who: int) -> State:
        delayed = state.actors[who].delayed
        assert delayed is not None
        return self.write(self.move(state, who, delayed=None), *delayed)

    def poisoned(self, state: State) -> State:
        """Poison is set and every sleeper of that moment woken."""
        actors = (a._replace(phase=RUN) if a.phase == ASLEEP else a for a in state.actors)
        return state._replace(poison=True, actors=tuple(actors))

    def waiters(self, state: State, address: str) -> list[int]:
        """Who counts as sleeper of a flag; a killed one stays counted, which costs a wake only."""
        return [
            who
            for who, actor in enumerate(state.actors)
            if actor.phase in (COUNTED, LOOKED, ASLEEP)
            and self.programs[who][actor.at].address == address
        ]

    # -- instructions ----------------------------------------------------------------------------
    def do_store(self, state: State, who: int, op: Op) -> Iterator[State]:
        if state.actors[who].delayed is None:
            yield self.write(self.on(state, who), op.address, op.value)

    def do_choose(self, state: State, who: int, op: Op) -> Iterator[State]:
        """Store "no cold neuron" or "some", with the number of the pass."""
        for some in (0, 1):
            yield self.write(self.on(state, who), op.address, 2 * op.value + some)

    def do_load(self, state: State, who: int, op: Op) -> Iterator[State]:
        if self.read(state, op.address) != op.value:
            found = self.read(state, op.address)
            raise Violation(f"{self.names[who]} reads {op.address} of pass {found} in {op.value}")
        yield self.on(state, who)

    def do_skip_if_none(self, state: State, who: int, op: Op) -> Iterator[State]:
        found = self.read(state, op.address)
        if found // 2 != op.value:
            raise Violation(f"{self.names[who]} reads {op.address} of pass {found // 2}")
        yield self.on(state, who, skip=0 if found % 2 else op.jump)

    def do_skip_if_some(self, state: State, who: int, op: Op) -> Iterator[State]:
        found = self.read(state, op.address)
        if found // 2 != op.value:
            raise Violation(f"{self.names[who]} reads {op.address} of pass {found // 2}")
        yield self.on(state, who, skip=op.jump if found % 2 else 0)

    def do_skip(self, state: State, who: int, op: Op) -> Iterator[State]:
        yield self.on(state, who, skip=op.jump)

    def do_delayed(self, state: State, who: int, op: Op) -> Iterator[State]:
        if state.actors[who].delayed is None:
            yield self.on(state, who, delayed=(op.address, op.value))

    def do_fence(self, state: State, who: int, op: Op) -> Iterator[State]:
        if state.actors[who].delayed is None:
            yield self.on(state, who)

    def do_look(self, state: State, who: int, op: Op) -> Iterator[State]:
        yield self.on(state, who, seen=int(bool(self.waiters(state, op.address))))

    def do_wake(self, state: State, who: int, op: Op) -> Iterator[State]:
        """Wake the flag's sleepers if the look before saw any."""
        if state.actors[who].seen:
            for other in self.waiters(state, op.address):
                if state.actors[other].phase == ASLEEP:
                    state = self.move(state, other, phase=RUN)
        yield self.on(state, who, seen=0)

    def do_wait(self, state: State, who: int, op: Op) -> Iterator[State]:
        actor, found = state.actors[who], self.read(state, op.address)
        if actor.phase == RUN:  # spinning, or back from the kernel
            if state.poison:  # seen before or after the flag
                yield self.move(state, who, phase=ENDED)
            if found == op.value:
                yield self.on(state, who)
            elif found > op.value:
                raise Violation(f"{self.names[who]} missed pass {op.value} of {op.address}")
            elif not state.poison:
                yield self.move(state, who, phase=COUNTED)
        elif actor.phase == COUNTED:
            if state.poison or found == op.value:
                yield self.move(state, who, phase=RUN)
            else:
                yield self.move(state, who, phase=LOOKED, seen=found)
        elif actor.phase == LOOKED:  # the kernel compares and sleeps in one
            asleep = found == actor.seen
            yield self.move(state, who, phase=ASLEEP if asleep else RUN, seen=0)

    def do_spin(self, state: State, who: int, op: Op) -> Iterator[State]:
        """Wait without sleep for a word that has two values."""
        if state.poison:
            yield self.move(state, who, phase=ENDED)
        elif self.read(state, op.address) == op.value:
            yield self.on(state, who)

    def do_stream_wait(self, state: State, who: int, op: Op) -> Iterator[State]:
        """A wait in a GPU stream: knows no poison and no deadline."""
        if self.read(state, op.address) == op.value:
            yield self.on(state, who)

    def do_use(self, state: State, who: int, op: Op) -> Iterator[State]:
        """A load whose result is thrown away where poison is seen before the token goes out."""
        stale = self.read(state, op.address) != op.value
        yield self.on(state, who, seen=int(stale or state.actors[who].seen))

    def do_deliver(self, state: State, who: int, op: Op) -> Iterator[State]:
        if state.poison:
            yield self.move(state, who, phase=ENDED)
        elif state.actors[who].seen:
            raise Violation(f"{self.names[who]} delivers a token made of a stale read")
        else:
            yield self.on(state, who)

    def do_await_poison(self, state: State, who: int, op: Op) -> Iterator[State]:
        """The watchdog of the GPU process: acts on poison, ends with the others otherwise."""
        others = [actor for number, actor in enumerate(state.actors) if number != who]
        if state.poison:
            yield self.on(state, who)
        elif all(actor.phase == ENDED for actor in others):
            yield self.move(state, who, phase=ENDED)
