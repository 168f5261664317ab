"""Starts Ray on this machine or joins a running cluster, without Ray's own output."""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.run import local_place
from pipeline.run.interrupt import held_back, leave_at_once
from pipeline.run.last_words import LastWords
from pipeline.run.ray_processes import ProcessWatch, in_own_groups, name_entrypoint, services_here
from pipeline.storage.uris import is_remote

REPOSITORY = Path(__file__).resolve().parents[2]

# By default glibc keeps an arena for every thread that ever decoded, and memory grows with the number of images.
WORKER_ENV = {"MALLOC_ARENA_MAX": "2"}

ENDED = (
    "facelake: the process was killed, or the core of Ray ended it, perhaps for lack of memory (see dmesg and "
    "`ulimit -v`)."
)

# The first bytes of an HTTP/2 client (RFC 9113, 3.4): the preface and an empty SETTINGS frame. The server answers them.
HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
ANSWER_S = 10.0

# Ray sends code as a zip without compression. Every file has two headers with its name; one more header ends the zip.
ZIP_ENTRY_BYTES, EMPTY_ZIP_BYTES = 30 + 46, 22


@dataclass(frozen=True, slots=True)
class Connection:
    """The Ray that the job runs on: its free CPUs and GPUs, its number of nodes, and the CPUs of nodes with a GPU."""

    cpus: float
    gpus: float
    nodes: int
    cpus_beside_gpus: float | None = None


class ClusterError(UserError):
    """Ray cannot be started or joined, or the job cannot run on it with these arguments."""


@contextmanager
def connect(
    num_cpus: int | None = None, *, worker_output: bool = False, say: Callable[[str], object] = print,
    last_words: str = "",
) -> Iterator[Connection]:
    """Join the cluster of RAY_ADDRESS (`ray job submit` sets it), or start Ray on this machine; disconnect at the end.

    num_cpus: of a Ray started here; None takes those of the machine. worker_output: show what workers print.
    last_words: how to go on, for the user, if this process hangs or ends without a word. Outside a submitted job we
    send the code of this repository to the cluster. Raises ClusterError if it cannot be reached, and RayLost.
    """
    # Ray logs a false error for every actor (its issue 57733). Real errors are raised.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Without a value Ray warns every user that the default will change.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray
    from ray.data import DataContext

    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_address(address)
    own, watch = ExitStack(), None
    try:
        if last_words:
            own.enter_context(LastWords(f"\n{ENDED} {last_words}"))
        with held_back():
            with quiet_stderr():
                if address:
                    _join(address, worker_output)
                else:
                    _start(num_cpus, worker_output, own.enter_context(local_place.prepared()))
                    watch = own.enter_context(ProcessWatch(
                        services_here(), say, last_words, connected=ray.is_initialized
                    ))
            total, free = all_and_free_resources()
            usable = free if address else total
            nodes, near = alive_nodes(), cpus_beside_gpus()
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)       # long logs of errors that are raised too
        context = DataContext.get_current()
        context.raise_original_map_exception = True
        context.enable_progress_bars = False
        context.enable_operator_progress_bars = False
        yield Connection(usable.get("CPU", 0.0), usable.get("GPU", 0.0), nodes, near)
    finally:
        with held_back():
            if watch and watch.close():
                leave_at_once()
            else:
                ray.shutdown()
            own.close()


def check_start(device: str, gpus: float | None) -> None:
    """What can be refused before Ray starts, and before anything is listed. Raises ClusterError.

    device: "cuda" needs a GPU on this machine, or a cluster. gpus: what the user says that there is.
    """
    if address := os.environ.get("RAY_ADDRESS"):
        _check_address(address)
    elif (device == "cuda" or gpus) and not _gpus_here():
        given = "--device cuda" if device == "cuda" else f"--gpus {gpus:g}"
        raise ClusterError(f"{given} needs a GPU, and this machine has none that is visible; use --device cpu")


def _gpus_here() -> int:
    """The GPUs of this machine that Ray will count."""
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager: Any = get_accelerator_manager_for_resource("GPU")
    found = manager.get_current_node_num_accelerators()
    visible = manager.get_current_process_visible_accelerator_ids()
    return int(found if visible is None else min(found, len(visible)))


def alive_nodes() -> int:
    """The number of nodes that are alive."""
    import ray

    untyped: Any = ray
    return sum(node["Alive"] for node in untyped.nodes())


def cpus_beside_gpus() -> float:
    """The logical CPUs of the nodes that have a GPU, free or not."""
    import ray

    untyped: Any = ray
    found = [node["Resources"] for node in untyped.nodes() if node["Alive"]]
    return float(sum(resources.get("CPU", 0.0) for resources in found if resources.get("GPU")))


def all_and_free_resources() -> tuple[dict[str, float], dict[str, float]]:
    """What the cluster has and what of it is free, by Ray's names."""
    import ray

    untyped: Any = ray
    return untyped.cluster_resources(), untyped.available_resources()


def describe_resources() -> str:
    """A line for the user: what of the cluster is free, and how full its object store is."""
    total, free = all_and_free_resources()
    shares = [f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}s" for name in ("CPU", "GPU")]
    store_gb = total.get("object_store_memory", 0) / 1e9
    used_gb = store_gb - free.get("object_store_memory", 0) / 1e9
    store = f"{used_gb:.2f} of {store_gb:.2f} GB used"
    return f"Ray: {' and '.join(shares)} free, nodes: {alive_nodes()}, object store: {store}"


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hide what this process writes to stderr, C++ included; if the block raises, show it."""
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(shown, kept.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(shown, 2)
            os.close(shown)


def _check_address(address: str) -> None:
    """Raises ClusterError unless a Ray answers at the address and takes our code."""
    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"RAY_ADDRESS={address} is the address for `ray job submit`; unset it to run on this machine, or submit "
            "the job: ray job submit --working-dir . -- python -m jobs.extract …"
        )
    if not in_submitted_job():
        check_working_dir(REPOSITORY, submitted=False)
    place = address.removeprefix("ray://")
    if "://" in place or place in ("auto", "local"):
        return
    host, _, port = place.rpartition(":")
    if not host or not port.isdecimal():
        raise ClusterError(f"RAY_ADDRESS={address} is no address: name host:port or auto, or unset it")
    try:
        _greet(host, int(port))      # Ray itself would retry for ever
    except OSError as error:
        raise _no_answer(address, error) from None


def _join(address: str, worker_output: bool) -> None:
    import ray

    runtime_env: dict[str, Any] = {"env_vars": WORKER_ENV}
    if not in_submitted_job():
        runtime_env["working_dir"] = str(REPOSITORY)     # without what .gitignore and .rayignore name
    name_entrypoint()
    try:
        ray.init(
            address=address, runtime_env=runtime_env, log_to_driver=worker_output, logging_level=logging.ERROR
        )
    except OSError as error:
        raise _no_answer(address, error) from None


def _no_answer(address: str, error: OSError) -> ClusterError:
    return ClusterError(f"no Ray answers at RAY_ADDRESS={address} ({error}); start it, or unset RAY_ADDRESS")


def _greet(host: str, port: int) -> None:
    """Raises OSError unless an HTTP/2 server, such as Ray's head, answers within `ANSWER_S`."""
    with socket.create_connection((host, port), ANSWER_S) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
            connection.sendall(HTTP2_GREETING)
            if not connection.recv(1):
                raise ConnectionError("the server there is not Ray")


def _start(num_cpus: int | None, worker_output: bool, temp_dir: str | None) -> None:
    """temp_dir: for Ray's files; None is Ray's own choice."""
    import ray

    for name, value in WORKER_ENV.items():
        os.environ.setdefault(name, value)               # Ray and its workers inherit it
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    name_entrypoint()
    try:
        with in_own_groups():
            ray.init(
                address="local", num_cpus=num_cpus, include_dashboard=False, log_to_driver=worker_output,
                logging_level=logging.ERROR, _temp_dir=temp_dir,
            )
    except Exception as error:      # Ray raises many kinds, of no class of its own
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise ClusterError(
            f"Ray cannot start on this machine: {reason}. It needs processes, local ports, some GB of memory (see "
            "`ulimit -v`) and a folder for temporary files with some GB free; TMPDIR names another folder"
        ) from error


def check_working_dir(folder: Path, *, submitted: bool) -> str:
    """A line with the size of the code that we send to a cluster, and its largest parts.

    submitted: `ray job submit` sends it, which takes 100 MiB and explains little beyond; else this process does, to a
    cluster that takes 512 MiB. Raises ClusterError if it is too large.
    """
    from ray._private import ray_constants
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE

    limit = ray_constants.DASHBOARD_CLIENT_MAX_SIZE if submitted else GCS_STORAGE_MAX_SIZE
    files = working_dir_files(folder)
    size = EMPTY_ZIP_BYTES + sum(files.values())
    by_place: Counter[str] = Counter()
    for name, number in files.items():
        first, *below = name.split("/")
        by_place[f"{first}/{below[0]}{'/' * (len(below) > 1)}" if below else first] += number
    largest = ", ".join(f"{place} {number / 2**20:.1f} MiB" for place, number in by_place.most_common(3))
    taken = f"of {limit / 2**20:.0f} MiB that {'ray job submit' if submitted else 'a cluster'} takes"
    line = f"the code to send, {folder}, has {size / 2**20:.1f} MiB {taken}; largest: {largest}"
    if size >= limit:
        raise ClusterError(
            f"{line}. Name in .rayignore what the job does not need; put weights of your own into a bucket and use "
            "--weights s3://…"
        )
    return line


def working_dir_files(folder: Path) -> dict[str, int]:
    """The files of a folder that Ray sends, by its rules (.gitignore, .rayignore, defaults), and their zip bytes."""
    from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE, get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    files: dict[str, int] = {}

    def add(path: Path) -> None:
        empty_folder = path.is_dir() and next(path.iterdir(), None) is None
        if empty_folder or path.is_file():
            name = path.relative_to(folder).as_posix() + "/" * empty_folder
            content = 0 if empty_folder else path.stat().st_size
            files[name] = ZIP_ENTRY_BYTES + 2 * len(name.encode()) + content

    folder = folder.absolute()
    _dir_travel(
        folder, [_get_excludes(folder, get_runtime_env_default_excludes())], add,
        include_gitignore=os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1",
        logger=logging.getLogger(__name__),
    )
    return files


def in_submitted_job() -> bool:
    """Whether `ray job submit` started this process; then every node has the code."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def refuse_local_paths(connection: Connection, paths: dict[str, str], shared_filesystem: bool) -> None:
    """Raises ClusterError for local paths on a cluster of several nodes, since each node has other files there.

    paths: the value of each argument, by its name.
    """
    local = [f"{name} {value}" for name, value in paths.items() if not is_remote(value)]
    if local and connection.nodes > 1 and not shared_filesystem:
        raise ClusterError(
            f"the cluster has {connection.nodes} nodes, and these are local paths: {', '.join(local)}; use a bucket, "
            "or add --shared-filesystem if all nodes see the same files there"
        )
