"""The plan: how many actors each pool has, and the CPUs and GPUs of each actor. Sums only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.boundary import STAGES
from pipeline.errors import UserError

GPU_STAGES = frozenset({"detect", "keypoint", "embed"})
WORK_SHARE = {"decode": 0.2, "detect": 0.55, "keypoint": 0.08, "align": 0.02, "embed": 0.15}
"""Share of CPU time per stage; splits the CPU actors between pools. Measured by `jobs.bench stages`; decode as on
photos of a dozen megapixels."""

CPUS_PER_GPU_ACTOR = 4        # one interpreter is busy with 250 images a second; a GPU takes several times as many
MOST_ACTORS_OF_GPU = 4        # each takes 2.5 GB of memory; on an H100 8 were a tenth faster than 4
THREADS_PER_CPU_ACTOR = 4     # a process with torch takes about 700 MB, and more threads speed up small networks little
GPU_CALLS = 2
PIXEL_BYTES, GPU_PIXEL_BYTES = 384 << 20, 768 << 20     # of the batches that an actor has in work together
ACTORS_OF_SINK_WORKER, MOST_SINK_WORKERS = 4, 8     # actors on CPUs; one on a GPU counts as two
LEAST_IMAGES = 16             # in a block; so more actors than blocks of so many would wait in vain
STEPS = 1000                  # of one CPU or GPU: what an actor reserves is rounded down to a thousandth


class PlanError(UserError):
    """The job does not fit; the message shows the sums and what to change."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """The logical CPUs and GPUs that are free for this job.

    cpus_beside_gpus: of the CPUs those on nodes with a GPU; None if all may be.
    """

    cpus: float
    gpus: float
    cpus_beside_gpus: float | None = None

    @property
    def near_cpus(self) -> float:
        """The CPUs that an actor with a GPU can have."""
        return self.cpus if self.cpus_beside_gpus is None else min(self.cpus, self.cpus_beside_gpus)


class PoolLayout(NamedTuple):
    """One pool as --pools has it. `actors` is None if the user leaves the number to us."""

    stages: tuple[str, ...]
    actors: int | None

    @property
    def name(self) -> str:
        """Its stages, as in --pools."""
        return "+".join(self.stages)


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """One pool: its stages, its number of actors, and what each actor reserves in Ray. It really uses `threads`."""

    stages: tuple[str, ...]
    actors: int
    cpus: float
    gpus: float
    threads: int

    @property
    def calls(self) -> int:
        """How many batches pass through the stages of an actor at once.

        On CPUs each thread takes a batch through all of them: threads that share one small network wait for each other.
        On a GPU one batch is prepared while the device has another. A pool without decode gets one batch a call of Ray.
        """
        if not self.decodes:
            return 1
        return GPU_CALLS if self.gpus else self.threads

    @property
    def decodes(self) -> bool:
        """Whether its actors get to-do rows."""
        return "decode" in self.stages

    @property
    def blocks_in_work(self) -> int:
        """How many blocks an actor works on at once: with stages after decode it decodes the next one meanwhile.

        Decode alone does not: its pixels that wait for Ray would be twice as many.
        """
        return 2 if self.decodes and len(self.stages) > 1 else 1

    @property
    def pixel_bytes(self) -> int:
        """How many bytes of pixels may be in the stages of an actor, unless a single batch has more.

        On a GPU it is three batches: two in work, and one that is ready.
        """
        return GPU_PIXEL_BYTES if self.gpus else PIXEL_BYTES

    def __str__(self) -> str:
        gpus = f" + {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.name}: {self.actors} × ({self.cpus:g} CPU{gpus}, {self.threads} threads)"

    @property
    def name(self) -> str:
        """Its stages, as in --pools."""
        return "+".join(self.stages)


@dataclass(frozen=True, slots=True)
class Plan:
    """The pools in order, and the number of sink workers, which reserve no CPU."""

    pools: tuple[PoolPlan, ...]
    sink_workers: int

    def __str__(self) -> str:
        return " → ".join([*(str(pool) for pool in self.pools), self.sink])

    def idle_cpus(self, cluster: Cluster) -> float:
        """The CPUs on nodes without a GPU, if every pool needs one."""
        return cluster.cpus - cluster.near_cpus if all(pool.gpus for pool in self.pools) else 0.0

    @property
    def sink(self) -> str:
        """The sink in words."""
        return f"sink: {self.sink_workers} × 0 CPU"


def parse_pools(layout: str) -> list[PoolLayout]:
    """Read "decode:8/detect+keypoint+align+embed": pools by "/", stages by "+", the number of actors after ":".

    Raises PlanError unless the five stages are there once each and in order.
    """
    pools = []
    for part in layout.split("/"):
        names, _, count = part.partition(":")
        if count and not (count.isdecimal() and int(count) > 0):
            raise PlanError(f"--pools {layout}: the number of actors in {part!r} must be a whole number above 0")
        pools.append(PoolLayout(tuple(name.strip() for name in names.split("+")), int(count) if count else None))
    if tuple(stage for pool in pools for stage in pool.stages) != STAGES:
        raise PlanError(
            f"--pools {layout}: name the stages {', '.join(STAGES)} once each and in this order, joined by + inside a "
            f"pool and by / between pools, for example decode/detect+keypoint+align+embed"
        )
    return pools


def make_plan(
    layout: str, cluster: Cluster, device: str, threads: int | None = None, images: int | None = None
) -> Plan:
    """The plan of a layout (`parse_pools`) on a cluster. `device` is "cpu" or "cuda".

    threads: of each actor; by default its share of the CPUs. images: to do; a pool has no more actors than blocks of
    them, unless the user gives their number. One CPU stays free when there are two or more. An actor of a pool whose
    number the user gives takes a whole CPU; the others share what is left. Raises PlanError with the sums if the plan
    does not fit.
    """
    pools = parse_pools(layout)
    on_gpu = [device == "cuda" and not GPU_STAGES.isdisjoint(pool.stages) for pool in pools]
    _check_free(cluster, any(on_gpu))
    most = math.ceil(images / LEAST_IMAGES) if images else None
    actors = [
        pool.actors or min(count, most or count)
        for pool, count in zip(pools, _count_actors(pools, on_gpu, cluster), strict=True)
    ]
    cpus = _cpus_per_actor(pools, on_gpu, actors, cluster)
    gpus = _gpus_per_actor(pools, on_gpu, actors, cluster)
    planned = tuple(
        PoolPlan(pool.stages, count, cpu, gpu, threads or _threads(pool, count, gpu, cluster))
        for pool, count, cpu, gpu in zip(pools, actors, cpus, gpus, strict=True)
    )
    feeding = sum(pool.actors * (2 if pool.gpus else 1) for pool in planned)
    return Plan(planned, sink_workers=max(1, min(MOST_SINK_WORKERS, feeding // ACTORS_OF_SINK_WORKER)))


def _check_free(cluster: Cluster, needs_gpu: bool) -> None:
    if needs_gpu and cluster.gpus < 1:
        raise PlanError(
            f"--device cuda needs a GPU, Ray has {cluster.gpus:g} free; use --device cpu, or --gpus N when the cluster "
            "starts its GPU nodes on demand"
        )
    if cluster.cpus < 0.01:
        raise PlanError(
            f"no CPU is free: Ray has {cluster.cpus:g}; wait for other jobs to end, add a node, or use --num-cpus N "
            "when the cluster starts its nodes on demand"
        )


def _count_actors(pools: Sequence[PoolLayout], on_gpu: Sequence[bool], cluster: Cluster) -> list[int]:
    """The actors of each pool: the number given, else by the GPUs, else by the pool's share of the work."""
    slots = max(len(pools), int(cluster.cpus) // THREADS_PER_CPU_ACTOR)
    works = [sum(WORK_SHARE[stage] for stage in pool.stages) for pool in pools]
    # The CPU pools of a GPU job feed the GPUs, so they share all slots.
    whole = sum(work for work, gpu in zip(works, on_gpu, strict=True) if not gpu) if any(on_gpu) else 1.0
    return [
        pool.actors or (_actors_on_gpus(pool, cluster) if gpu else max(1, round(slots * work / whole)))
        for pool, work, gpu in zip(pools, works, on_gpu, strict=True)
    ]


def _actors_on_gpus(pool: PoolLayout, cluster: Cluster) -> int:
    """One for each GPU; several if they decode too, by the CPUs of each GPU."""
    gpus = int(cluster.gpus)
    if "decode" not in pool.stages:
        return gpus
    return gpus * max(1, min(MOST_ACTORS_OF_GPU, int(cluster.near_cpus / gpus) // CPUS_PER_GPU_ACTOR))


def _cpus_per_actor(
    pools: Sequence[PoolLayout], on_gpu: Sequence[bool], actors: Sequence[int], cluster: Cluster
) -> list[float]:
    """The logical CPUs of an actor of each pool. Those with a GPU must find theirs on the same node."""
    budget = cluster.cpus - 1 if cluster.cpus >= 2 else cluster.cpus * 0.9
    given = sum(pool.actors or 0 for pool in pools)
    sharing = sum(actors) - given
    left = budget - given
    if given > cluster.cpus or (sharing and left <= 0):
        sums = " + ".join(
            f"{pool.name} {count} × {'1' if pool.actors else 'a share'} CPU"
            for pool, count in zip(pools, actors, strict=True)
        )
        reserve = ", of which one stays free" if sharing and cluster.cpus >= 2 else ""
        raise PlanError(
            f"this plan needs more CPUs than are free: {sums} against {cluster.cpus:g} CPUs{reserve}; "
            "lower the numbers in --pools"
        )
    share = left / sharing if sharing else 0.0
    gpu_actors = sum(count for count, gpu in zip(actors, on_gpu, strict=True) if gpu)
    near_share = min(share, cluster.near_cpus / gpu_actors) if gpu_actors else share
    return [
        1.0 if pool.actors else min(1.0, _rounded_down(near_share if gpu else share))
        for pool, gpu in zip(pools, on_gpu, strict=True)
    ]


def _gpus_per_actor(
    pools: Sequence[PoolLayout], on_gpu: Sequence[bool], actors: Sequence[int], cluster: Cluster
) -> list[float]:
    """The GPUs of an actor of each pool; the pools on GPUs share them equally. A share lies on one GPU."""
    gpus = []
    for pool, gpu, count in zip(pools, on_gpu, actors, strict=True):
        per_pool = cluster.gpus / sum(on_gpu) if gpu else 0.0
        gpus.append(_rounded_down(1 / max(1, math.ceil(count / per_pool))) if gpu else 0.0)
        if gpu and not gpus[-1]:
            raise PlanError(
                f"{count} actors of {pool.name} cannot share {cluster.gpus:g} GPUs, of which each needs at least "
                f"{1 / STEPS:g}; lower the number in --pools to at most {int(per_pool * STEPS)}"
            )
    return gpus


def _threads(pool: PoolLayout, actors: int, gpus: float, cluster: Cluster) -> int:
    """The threads of an actor: at most `THREADS_PER_CPU_ACTOR`, or its whole share if it decodes for its own GPU."""
    share = max(1, int(cluster.near_cpus if gpus else cluster.cpus) // actors)
    return share if gpus and "decode" in pool.stages else min(THREADS_PER_CPU_ACTOR, share)


def _rounded_down(resource: float) -> float:
    """To thousandths, so that the sum of all actors stays within what there is."""
    return math.floor(resource * STEPS) / STEPS
