"""The results of a study, as its figures and claims ask for them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isthmus.claims.pictures import CRITICAL, PAPER, SEARCH
from isthmus.claims.plan import branch_job, mesh_job, minima_job, trained_job, ways_job
from isthmus.claims.sizes import Size
from isthmus.sweeps import Job, Store

Numbers = dict[str, Any]
"""Of one network: see `isthmus.claims.numbers.network_numbers`."""


@dataclass(frozen=True)
class Study:
    """What was computed.

    Args:
        size: of the networks.
        seeds: that were asked for: 0 … seeds − 1.
        results: by the key of the job; what failed or was not computed is not there.
    """

    size: Size
    seeds: int
    results: Mapping[str, Any]

    @classmethod
    def of(cls, store: Store, size: Size, seeds: int, jobs: list[Job]) -> "Study":
        """Read the results of jobs that are there.

        Raises:
            isthmus.sweeps.StoreError: a file is damaged.
        """
        found = {job.key: store.read(job).result for job in jobs if store.has(job)}
        return cls(size, seeds, {key: result for key, result in found.items() if result is not None})

    @property
    def k_star(self) -> int:
        """The teacher's inner dimension of Figures 1 and 3."""
        return self.size.dims[1]

    def network(self, reading: str, seed: int, effective_depth: float) -> Numbers | None:
        """The network of a seed at an L̃ of the size; None where there is none, or it has collapsed.

        Args:
            reading: `PAPER`, or `CRITICAL`: then certified critical points alone.
            seed: of teacher and network.
            effective_depth: L̃.
        """
        if reading == PAPER:
            found = self.results.get(trained_job(self.size, seed, effective_depth).key)
        else:
            points = self.points(seed, "effective_depth")
            found = next((p for p in points if p["values"]["effective_depth"] == effective_depth), None)
            if found is not None and not found["values"]["certified"]:
                return None
        return None if found is None or found["values"]["collapsed"] else found

    def along(self, reading: str, seed: int) -> list[Numbers]:
        """Those of all L̃ that are there, ascending."""
        found = (self.network(reading, seed, leak) for leak in self.size.leaks)
        return [network for network in found if network is not None]

    def points(self, seed: int, parameter: str) -> list[Numbers]:
        """The points of a branch that was followed along ``mu`` or ``effective_depth``, in order; certified or not."""
        part = self._branch(seed, parameter)
        return [] if part is None else part["points"]

    def events(self, seed: int, parameter: str) -> list[dict[str, Any]] | None:
        """What happened along it; None where there is no such branch, or it did not reach its end."""
        part = self._branch(seed, parameter)
        return None if part is None or part["status"] != "converged" else part["events"]

    def _branch(self, seed: int, parameter: str) -> dict[str, Any] | None:
        found = self.results.get(branch_job(self.size, seed).key)
        return None if found is None else found[parameter]

    def mesh(self, seed: int, depth: int, rule: str) -> Numbers | None:
        """A network of Figure 2a; None where there is none."""
        return self.results.get(mesh_job(self.size, seed, depth, rule).key)

    def ways(self) -> dict[str, Numbers] | None:
        """The networks of Figures 2b and 2c by rule, of seed 0."""
        return self.results.get(ways_job(self.size, 0).key)

    def minima(self, seed: int) -> dict[str, Any] | None:
        """What the search for minima of the cost of identity found; None where there was none."""
        return self.results.get(minima_job(self.size, seed).key)

    def counted(self, reading: str) -> tuple[int, int]:
        """How many networks along L̃ there are, and how many of them are certified critical points.

        Of the search: minima that it was led to, and those of them that have converged.
        """
        if reading == SEARCH:
            found = [m for seed in range(self.seeds) if (m := self.minima(seed)) is not None]
            converged = sum(m["minima"] for m in found)
            return converged + sum(m["open"] for m in found), converged
        networks = [network for seed in range(self.seeds) for network in self.along(reading, seed)]
        return len(networks), sum(bool(network["values"]["certified"]) for network in networks)

    def counted_meshes(self) -> tuple[int, int]:
        """Likewise of the networks of Figure 2a."""
        from isthmus.claims.work import RULES

        found = [
            network
            for seed in range(self.seeds)
            for depth in self.size.mesh_depths
            for rule in RULES
            if (network := self.mesh(seed, depth, rule)) is not None
        ]
        return len(found), sum(bool(network["values"]["certified"]) for network in found)


def value(network: Numbers | None, name: str) -> float:
    """A value of a network; NaN where it is not there."""
    found = None if network is None else network["values"].get(name)
    return math.nan if found is None else float(found)


def column(network: Numbers, name: str) -> list[float]:
    """A column of a network, by layer or by state; NaN where a value is undefined."""
    values = network["layers"][name] if name in network["layers"] else network["states"][name]
    return [math.nan if v is None else float(v) for v in values]


__all__ = ["CRITICAL", "PAPER", "SEARCH", "Numbers", "Study", "column", "value"]
