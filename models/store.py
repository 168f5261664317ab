"""The weight store: a model is `<role>-<name>.safetensors` beside its card, `<role>-<name>.json`.

A safetensors file cannot carry code. Every read is checked against the sha256 in the card. Weights are downloaded only
from a bucket that the user names. The driver reads cards too and must not import torch: only functions import it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pipeline.errors import UserError, first_line

if TYPE_CHECKING:
    import torch

Network = TypeVar("Network", bound="torch.nn.Module")

DEFAULT_WEIGHTS_DIR = Path(__file__).parent / "weights"

TASKS = {"detector": "face", "keypointer": "eyes", "embedder": "arcface"}
"""From every role to the name of its task in `WeightCard.identity`."""

EXPORT_ENDINGS = {"onnx": "onnx", "int8": "int8.zip"}
"""The ends of the names of exported files, by the keys of `WeightCard.exports`."""

_CARD_TYPES = {
    "name": str, "role": str, "architecture": dict, "preprocessing": dict, "licence": str, "commercial_use": bool,
    "started_from": str, "data": list, "metrics": dict, "command": str, "thresholds": dict, "sha256": str,
    "tensors_sha256": str, "exports": dict,
}
_JSON_NAMES = {str: "a text", bool: "true or false", dict: "an object", list: "a list"}

EMBEDDING_DIM = 512
"""Length of every embedder's vectors and of the column `embedding`."""


class WeightsError(UserError):
    """The weights are missing, damaged, or do not fit; the message says what to do."""


@dataclass(frozen=True)
class WeightCard:
    """The facts about one model's weights: the fields of the JSON file beside them.

    architecture: the network's name and arguments; enough to build it.
    preprocessing: at least `input_px`, `mean` and `std` (three values each, in units of 0–255), `colour_order`.
    data: the training data, each with `name` and `licence`.
    thresholds: from false positive rate to cosine; embedders only.
    sha256: of the safetensors file. tensors_sha256: see `tensors_digest`.
    exports: from a format, a key of `EXPORT_ENDINGS`, to its file's sha256 and what an engine checks it with; not in
    the fingerprint.
    Raises ValueError for a wrong or missing value.
    """

    name: str
    role: str
    architecture: dict[str, Any]
    preprocessing: dict[str, Any]
    licence: str
    commercial_use: bool
    started_from: str
    data: list[dict[str, str]]
    metrics: dict[str, Any]
    command: str
    sha256: str
    tensors_sha256: str
    thresholds: dict[str, float] = field(default_factory=dict)
    exports: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, kind in _CARD_TYPES.items():
            if not isinstance(getattr(self, key), kind):
                raise ValueError(f"{key} must be {_JSON_NAMES[kind]}, got {getattr(self, key)!r}")
        if self.role not in TASKS:
            raise ValueError(f"role must be one of {', '.join(TASKS)}, got {self.role!r}")
        if not self.name.isprintable() or not self.name or set(self.name) & set("/\\@ "):
            raise ValueError(f"name must be a word without slash, blank or @, got {self.name!r}")
        if self.thresholds and self.role != "embedder":
            raise ValueError(f"thresholds belong to embedders only, got {self.thresholds} for a {self.role}")
        _require_keys("architecture", self.architecture, "network")
        _require_keys("preprocessing", self.preprocessing, "input_px", "mean", "std", "colour_order")
        for source in self.data:
            if not isinstance(source, dict):
                raise ValueError(f"every entry of data must be an object, got {source!r}")
            _require_keys("every entry of data", source, "name", "licence")
        for key in ("sha256", "tensors_sha256"):
            digest = getattr(self, key)
            if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
                raise ValueError(f"{key} must be 64 lower-case hexadecimal digits, got {digest!r}")

    @property
    def identity(self) -> str:
        """The model's name in the output: `yolov8n-face@0123456789ab`."""
        return f"{self.name}-{TASKS[self.role]}@{self.tensors_sha256[:12]}"

    @property
    def file_name(self) -> str:
        """Name of the safetensors file."""
        return f"{self.role}-{self.name}.safetensors"

    @property
    def export_name(self) -> str:
        """Name of the ONNX file, if the model has one."""
        return self.export_file("onnx")

    def export_file(self, kind: str) -> str:
        """Name of the file of an export, a key of `EXPORT_ENDINGS`, if the model has it."""
        return f"{self.role}-{self.name}.{EXPORT_ENDINGS[kind]}"

    def files(self) -> dict[str, str]:
        """The files that belong to the card, and the sha256 of each."""
        exported = {
            self.export_file(kind): self.exports[kind]["sha256"] for kind in EXPORT_ENDINGS if kind in self.exports
        }
        return {self.file_name: self.sha256, **exported}

    def with_export(self, kind: str, entry: Mapping[str, Any]) -> WeightCard:
        """The card with this entry in `exports`."""
        return replace(self, exports={**self.exports, kind: dict(entry)})

    def fingerprint(self) -> dict[str, Any]:
        """Everything about this model that can change a row of the output; JSON values."""
        return {
            "architecture": self.architecture,
            "preprocessing": self.preprocessing,
            "tensors_sha256": self.tensors_sha256,
        }


@dataclass(frozen=True)
class StoredModel:
    """A model's card, the bytes of its safetensors file, which were checked against the card, and its folder."""

    card: WeightCard
    content: bytes
    folder: Path

    def read_export(self, kind: str = "onnx") -> bytes | None:
        """The export that lies beside the weights, a key of `EXPORT_ENDINGS`; None if the card names none.

        Raises WeightsError when it is missing or damaged.
        """
        if kind not in self.card.exports:
            return None
        return _read_checked(self.folder / self.card.export_file(kind), self.card.exports[kind]["sha256"])

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by name, on the CPU; half precision becomes float32."""
        import safetensors.torch
        import torch

        return {
            name: tensor.to(torch.float32) if tensor.is_floating_point() else tensor
            for name, tensor in safetensors.torch.load(self.content).items()
        }

    def load(self, build: Callable[[Mapping[str, Any]], Network]) -> Network:
        """The network that `build` makes of the card's architecture, with the tensors in it.

        Raises WeightsError when the tensors do not fit.
        """
        network = build(self.card.architecture)
        try:
            network.load_state_dict(self.tensors())
        except RuntimeError as error:
            raise WeightsError(
                f"{self.card.role} {self.card.name!r}: its tensors are not those of {self.card.architecture}: {error}"
            ) from None
        return network


def read_model(weights_dir: Path, role: str, name: str, *, known: WeightCard | None = None) -> StoredModel:
    """Read one model and check it against its card.

    known: a card of this model that was checked before, by the driver. If its digests are in the card here too, the
    file's sha256 is enough, and the tensors are not hashed again.
    Raises WeightsError when a file is missing, the card cannot be read, or the weights do not match it.
    """
    path = weights_dir / f"{role}-{name}.json"
    card = _read_card_file(path, role, name)
    content = _read_checked(weights_dir / card.file_name, card.sha256)
    if known is None or (known.sha256, known.tensors_sha256) != (card.sha256, card.tensors_sha256):
        digest = tensors_digest(content)
        if digest != card.tensors_sha256:
            raise WeightsError(
                f"{path}: tensors_sha256 is {card.tensors_sha256}, the tensors have {digest}; mend the card"
            )
    return StoredModel(card, content, weights_dir)


def read_card(weights_dir: Path, role: str, name: str) -> WeightCard:
    """The card of one model, checked as `read_model` checks it. Raises WeightsError."""
    return read_model(weights_dir, role, name).card


def save_model(
    weights_dir: Path, card_fields: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], *, half: bool = False
) -> WeightCard:
    """Write a model's two files, the card last; the card.

    card_fields: the fields of `WeightCard` without the two digests. half: store floats in half precision.
    """
    import safetensors.torch
    import torch

    stored = {
        name: tensor.detach().cpu().to(torch.float16 if half and tensor.is_floating_point() else tensor.dtype)
        .contiguous().clone()      # safetensors refuses tensors that share memory
        for name, tensor in tensors.items()
    }
    content = safetensors.torch.save(stored)
    card = WeightCard(
        **card_fields, sha256=hashlib.sha256(content).hexdigest(), tensors_sha256=tensors_digest(content)
    )
    weights_dir.mkdir(parents=True, exist_ok=True)
    write_whole(weights_dir / card.file_name, content)
    write_card(weights_dir, card)
    return card


def write_card(weights_dir: Path, card: WeightCard) -> None:
    """Replace a model's card, for example with new figures; the weights file stays."""
    text = json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n"
    write_whole((weights_dir / card.file_name).with_suffix(".json"), text.encode())


class WeightsBucket(Protocol):
    """A folder in an object store: `pipeline.storage` opens it."""

    @property
    def root(self) -> str:
        """Its URI."""

    def list(self, folder: str) -> Sequence[Any]:
        """The files directly in the folder; each has a `path`."""

    def read(self, path: str) -> bytes:
        """The content."""


def fetch_weights(source: str | Path | WeightsBucket, cache_dir: Path, model: str | None = None) -> Path:
    """A local folder with the weights of the source.

    A local folder is returned as it is. From a bucket the weights are copied into a folder below cache_dir, except
    those that are there already and match their card. model: copy only `<role>-<name>`, else all. If several processes
    call this at once, one copies and the others wait. Only this user may be able to write to cache_dir: anyone else
    could replace the weights after the check. Raises WeightsError.
    """
    if isinstance(source, str | Path):
        if not Path(source).is_dir():
            raise WeightsError(f"weights: {source} is not a folder; give a folder or a bucket URI")
        return Path(source)
    target = own_folder(cache_dir) / hashlib.sha256(source.root.encode()).hexdigest()[:16]
    target.mkdir(mode=0o700, exist_ok=True)
    try:
        with _locked(target):
            copied = _copy_from_bucket(source, target, model)
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"weights: cannot copy {source.root}: {first_line(error)}") from error
    if not copied:
        raise WeightsError(f"weights: {source.root} holds no model card ({model or '*'}.json); name another folder")
    return target


def _copy_from_bucket(source: WeightsBucket, target: Path, model: str | None) -> list[str]:
    """Copy cards and weights that are missing or differ; the names of the cards in the bucket."""
    found = [file.path for file in source.list("")]
    names = [name for name in found if name.endswith(".json") and model in (None, name.removesuffix(".json"))]
    for name in names:
        content = source.read(name)
        card = _parse_card(f"{source.root}/{name}", json.loads(content))
        for file_name, sha256 in card.files().items():
            local = target / file_name
            if not local.exists() or hashlib.sha256(local.read_bytes()).hexdigest() != sha256:
                write_whole(local, source.read(file_name))
        write_whole(target / name, content)
    return names


def own_folder(folder: Path) -> Path:
    """The folder, created if need be, if only this user can write to it. Raises WeightsError otherwise.

    Another user can guess the name of a folder for temporary files and create it first.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()                   # stat would follow a link
    except OSError as error:
        raise WeightsError(f"cannot make the folder {folder}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise WeightsError(
            f"other users can write to {folder}, or it is not a folder: remove it, or set TMPDIR to another folder for "
            "temporary files"
        )
    return folder


def tensors_digest(content: bytes) -> str:
    """sha256 over the tensors of a safetensors file, sorted by name: name, dtype, shape, bytes.

    The order and the comments in the file do not change it, unlike the file's own sha256.
    Raises WeightsError when the bytes are not a safetensors file.
    """
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        header.pop("__metadata__", None)
        digest = hashlib.sha256()
        for name in sorted(header):
            entry = header[name]
            first, end = entry["data_offsets"]
            digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
            digest.update(memoryview(content)[start + first : start + end])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"these bytes are not a safetensors file: {error}") from None
    return digest.hexdigest()


def _read_card_file(path: Path, role: str, name: str) -> WeightCard:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(p.stem.removeprefix(f"{role}-") for p in path.parent.glob(f"{role}-*.json"))
        raise WeightsError(
            f"there is no {role} {name!r}: {path} does not exist; "
            + (f"available: {', '.join(known)}" if known else f"{path.parent} holds no {role}")
        ) from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON ({error}); restore it from its source") from None
    card = _parse_card(path, values)
    if (card.role, card.name) != (role, name):
        raise WeightsError(f"{path} describes the {card.role} {card.name!r}: rename the file or mend the card")
    return card


def _parse_card(origin: Path | str, values: Any) -> WeightCard:
    """The card in a JSON value; origin names it in the WeightsError."""
    known = {f.name for f in fields(WeightCard)}
    if not isinstance(values, dict):
        raise WeightsError(f"{origin} is no model card: an object is expected, got {type(values).__name__}")
    if missing := sorted(known - {"thresholds", "exports"} - values.keys()):
        raise WeightsError(f"{origin} is no model card: {', '.join(missing)} missing")
    if extra := sorted(values.keys() - known):
        raise WeightsError(f"{origin} has fields that this version does not know: {', '.join(extra)}")
    try:
        return WeightCard(**values)
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{origin} is no model card: {error}") from None


def _read_checked(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing, only its card is there; copy it beside the card") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise WeightsError(
            f"{path} is damaged or not its card's: sha256 {digest}, the card says {sha256}; copy both again"
        )
    return content


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system releases it if the process dies."""
    with (folder / ".lock").open("w") as lock:
        with suppress(OSError):      # a file system without locks: several copy the same files, each of them whole
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _require_keys(what: str, mapping: Mapping[str, Any], *keys: str) -> None:
    missing = [key for key in keys if key not in mapping]
    if missing:
        raise ValueError(f"{what} must have {', '.join(missing)}, got {sorted(mapping)}")


def write_whole(path: Path, content: bytes) -> None:
    """Write the whole file or nothing: another process may read it at any moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)
