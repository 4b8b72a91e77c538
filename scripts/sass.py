"""The hot path through a kernel's machine code (SASS), and the instructions on it by the pipe that runs them.

The path is the shortest one that does the work: it passes over all the instructions asked for, and so leaves out the
branches of other dtypes and strides and the slow paths. A loop inside runs as often as the caller says. So a count is a
lower bound for a warp whose threads take both ways of a branch.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

# By the beginning of the opcode, in this order; the rest is ALU. IMAD.WIDE counts twice for the multiplier.
PIPES = {
    "wide multiplier": r"IMAD\.(WIDE|HI)",
    "multiplier": r"IMAD|IDP",
    "fma": r"(FFMA|FADD|FMUL|HFMA2|HADD2|HMUL2)",
    "fp64": r"(DADD|DFMA|DMUL|DSETP)",
    "xu": r"(MUFU|F2I|I2F(\.|$)|F2F(\.|$)|POPC|FLO|BREV)",
    "lsu": r"(LDG|LDGSTS|STG|LDS|STS|LDL|STL|LDC|LD|ST|SHFL|ATOM|ATOMG|ATOMS|RED|MEMBAR|CCTL|ERRBAR)\b",
    "control": r"(BRA|BSSY|BSYNC|EXIT|BAR|WARPSYNC|CALL|RET|BREAK|NOP|BMOV|YIELD|DEPBAR|BRX|JMP)",
    "uniform": r"(U[A-Z]|R2UR|S2R|S2UR|CS2R|VOTE|MATCH)",
}


class Instruction(Protocol):
    @property
    def address(self) -> int: ...
    @property
    def predicate(self) -> str: ...  # "@!P0", or nothing
    @property
    def text(self) -> str: ...


def pipe(op: str) -> str:
    return next((name for name, pattern in PIPES.items() if re.match(pattern, op)), "alu")


class Block(NamedTuple):
    ops: list[str]
    successors: list[int]


@dataclass
class Path:
    ops: Counter[str]  # as often as a thread runs them

    def total(self) -> float:
        return sum(self.ops.values())

    def count(self, pattern: str) -> float:
        return sum(n for op, n in self.ops.items() if re.match(pattern, op))

    def pipes(self) -> dict[str, float]:
        found: Counter[str] = Counter()
        for op, n in self.ops.items():
            found[pipe(op)] += n
        return dict(found)


def blocks_of(code: Sequence[Instruction]) -> dict[int, Block]:
    """Basic blocks by address, in the order of the code. A call goes on behind it, and so
    does a jump by a table (BRX): to its first case."""
    index = {one.address: i for i, one in enumerate(code)}
    starts = {code[0].address}
    for i, one in enumerate(code):
        if re.match("BRA|BRX|EXIT|RET|JMP", one.text):
            starts.update(_targets(one.text))
            starts.update(follower.address for follower in code[i + 1 : i + 2])
    order = sorted(starts & index.keys())
    blocks = {}
    for start, end in zip(order, [*order[1:], None], strict=True):
        body = code[index[start] : None if end is None else index[end]]
        last = body[-1]
        jumps = re.match("BRA|JMP", last.text) is not None
        leaves = jumps or re.match("EXIT|RET", last.text) is not None
        conditional = bool(last.predicate) or re.match(r"BRA\S*\s+(!?U?P\d|~?UR|.DIV)|BRA\.DIV", last.text)
        successors = [target for target in _targets(last.text) if jumps and target in index]
        if end is not None and (not leaves or conditional):
            successors.append(end)
        blocks[start] = Block([one.text.split()[0] for one in body], successors)
    reached, queue = {code[0].address}, [code[0].address]
    while queue:
        new = set(blocks[queue.pop()].successors) - reached
        reached |= new
        queue += new
    return {start: block for start, block in blocks.items() if start in reached}


def _targets(text: str) -> list[int]:
    return [int(found, 16) for found in re.findall(r"0x([0-9a-f]+)", text)[-1:]]


class Code:
    """A kernel.

    `need`: regular expression to how many instructions of it a path must pass; `forbidden`: what it must not pass.
    `trips`: how often an inner loop runs, from one round of it; `inner_need`: what such a round must pass.
    """

    def __init__(
        self,
        code: Sequence[Instruction],
        *,
        forbidden: str | None = None,
        trips: Callable[[Path], float] = lambda once: 1,
        inner_need: Mapping[str, int] | None = None,
    ) -> None:
        self.blocks = blocks_of(code)
        self.entry = code[0].address
        self.trips, self.inner_need = trips, inner_need or {}
        self.closed = {
            start
            for start, block in self.blocks.items()
            if forbidden and any(re.match(forbidden, op) for op in block.ops)
        }
        self.latches = self._latches()  # by header
        self.bodies = {header: self._body(header) for header in self.latches}

    def loop(self, need: Mapping[str, int]) -> Path | None:
        """The shortest round of any loop that does what is needed, and has none inside that does."""
        found = {header: path for header in self.latches if (path := self._around(header, need))}
        inner = [path for at, path in found.items() if not self.bodies[at] & (found.keys() - {at})]
        return min(inner, key=Path.total, default=None)

    def whole(self, need: Mapping[str, int]) -> Path | None:
        """From the entry to an end."""
        ends = {at for at, block in self.blocks.items() if block.ops[-1].startswith("EXIT")}
        return self._expanded(self._shortest(self.entry, ends, set(self.blocks), need), set())

    def _around(self, header: int, need: Mapping[str, int]) -> Path | None:
        walk = self._shortest(header, self.latches[header], self.bodies[header], need)
        return self._expanded(walk, {header})

    def _expanded(self, walk: list[int] | None, outer: set[int]) -> Path | None:
        """The ops of the blocks of a walk, those of its inner loops as often as these run."""
        if walk is None:
            return None
        ops = Counter(op for start in walk for op in self.blocks[start].ops)
        done: set[int] = set()
        for at in walk:
            if at in self.latches.keys() - outer - done and self.latches[at] & set(walk):
                done |= self.bodies[at]  # with the loops inside it
                once = self._around(at, self.inner_need)
                if once is None:
                    return None
                # Instead of the walk's own way through it, which knows nothing of loops inside.
                ops.subtract(Counter(op for b in walk if b in self.bodies[at] for op in self.blocks[b].ops))
                trips = self.trips(once)
                ops.update({op: n * trips for op, n in once.ops.items()})
        return Path(ops)

    def _latches(self) -> dict[int, set[int]]:
        """The blocks from which a loop's header is reached again: those that it dominates."""
        order = list(self.blocks)
        number = {at: i for i, at in enumerate(order)}
        before: dict[int, list[int]] = {at: [] for at in order}
        for at, block in self.blocks.items():
            for to in block.successors:
                before[to].append(at)
        dominators = {at: (1 << len(order)) - 1 for at in order}
        dominators[self.entry] = 1 << number[self.entry]
        changed = True
        while changed:
            changed = False
            for at in order:
                if at == self.entry:
                    continue
                found = (1 << len(order)) - 1
                for source in before[at]:
                    found &= dominators[source]
                found |= 1 << number[at]
                changed |= found != dominators[at]
                dominators[at] = found
        self.before = before
        latches: dict[int, set[int]] = {}
        for at, block in self.blocks.items():
            for to in block.successors:
                if dominators[at] >> number[to] & 1:
                    latches.setdefault(to, set()).add(at)
        return latches

    def _body(self, header: int) -> set[int]:
        body, queue = {header}, list(self.latches[header])
        while queue:
            at = queue.pop()
            if at not in body:
                body.add(at)
                queue += self.before[at]
        return body

    def _shortest(
        self, start: int, ends: set[int], within: set[int], need: Mapping[str, int]
    ) -> list[int] | None:
        """Blocks from `start` to one of `ends`, none of them twice."""
        wanted = tuple(need.values())
        patterns = [re.compile(pattern) for pattern in need]
        gains = {
            at: tuple(sum(1 for op in self.blocks[at].ops if pattern.match(op)) for pattern in patterns)
            for at in within
        }
        if start in self.closed:
            return None
        State = tuple[int, tuple[int, ...]]
        first: State = (start, tuple(map(min, gains[start], wanted)))
        best: dict[State, tuple[int, State | None]] = {first: (len(self.blocks[start].ops), None)}
        queue = [(best[first][0], first)]
        while queue:
            length, state = heapq.heappop(queue)
            at, have = state
            if length > best[state][0]:
                continue
            if have == wanted and at in ends:
                walk: list[int] = []
                here: State | None = state
                while here is not None:
                    walk.append(here[0])
                    here = best[here][1]
                return walk[::-1]
            for to in self.blocks[at].successors:
                if to in self.closed or to not in within or at in self.latches.get(to, ()):
                    continue
                after = (to, tuple(min(a + b, w) for a, b, w in zip(have, gains[to], wanted, strict=True)))
                far = length + len(self.blocks[to].ops)
                if after not in best or far < best[after][0]:
                    best[after] = (far, state)
                    heapq.heappush(queue, (far, after))
        return None
