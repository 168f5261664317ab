"""The weight store: a model is `<role>-<name>.safetensors` beside `<role>-<name>.json`, its card.

Weights cannot carry code, every read is checked against the card's sha256, and nothing is downloaded unless the user
names a bucket. The driver reads cards to build the fingerprint, so torch is imported only where tensors are made.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch

DEFAULT_WEIGHTS_DIR = Path(__file__).parent / "weights"

TASKS = {"detector": "face", "keypointer": "eyes", "embedder": "arcface"}
"""Every role, and the word that names its task in `WeightCard.identity`."""


_JSON_NAMES = {str: "a text", dict: "an object", list: "a list"}

EMBEDDING_DIM = 512
"""Length of every embedder's vectors, and of the column that holds them."""


class WeightsError(UserError):
    """The weights cannot be used: missing, damaged, or asked for in a way that cannot work. The message has the fix."""


@dataclass(frozen=True)
class WeightCard:
    """What is known of one model's weights; the JSON file beside them, field by field.

    architecture: the network's name and its arguments, all that is needed to build it.
    preprocessing: at least `input_px`, `mean` and `std` (three values each, in units of 0–255), `colour_order`.
    data: what it was trained on, each with `name` and `licence`.
    thresholds: cosines by false positive rate; embedders only.
    sha256: of the safetensors file. tensors_sha256: of names, dtypes, shapes and bytes, see `tensors_digest`.
    Raises ValueError where a field is missing or cannot be right.
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

    def __post_init__(self) -> None:
        kinds = {"name": str, "role": str, "architecture": dict, "preprocessing": dict, "licence": str,
                 "started_from": str, "data": list, "metrics": dict, "command": str, "thresholds": dict}
        for key, kind in kinds.items():
            if not isinstance(getattr(self, key), kind):
                raise ValueError(f"{key} must be {_JSON_NAMES[kind]}, got {getattr(self, key)!r}")
        if self.role not in TASKS:
            raise ValueError(f"role must be one of {', '.join(TASKS)}, got {self.role!r}")
        if not self.name.isprintable() or not self.name or set(self.name) & set("/\\@ "):
            raise ValueError(f"name must be a word without slash, blank or @, got {self.name!r}")
        if not isinstance(self.commercial_use, bool):
            raise ValueError(f"commercial_use must be true or false, got {self.commercial_use!r}")
        _require_keys("architecture", self.architecture, "network")
        _require_keys("preprocessing", self.preprocessing, "input_px", "mean", "std", "colour_order")
        for source in self.data:
            if not isinstance(source, dict):
                raise ValueError(f"every entry of data must be an object, got {source!r}")
            _require_keys("every entry of data", source, "name", "licence")
        if self.thresholds and self.role != "embedder":
            raise ValueError(f"thresholds belong to embedders only, got {self.thresholds} for a {self.role}")
        for key in ("sha256", "tensors_sha256"):
            digest = getattr(self, key)
            if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
                raise ValueError(f"{key} must be 64 lower-case hexadecimal digits, got {digest!r}")

    @property
    def identity(self) -> str:
        """The model as the output names it: `yolov8n-face@0123456789ab`."""
        return f"{self.name}-{TASKS[self.role]}@{self.tensors_sha256[:12]}"

    @property
    def file_name(self) -> str:
        """Name of the file with the tensors."""
        return f"{self.role}-{self.name}.safetensors"

    def fingerprint(self) -> dict[str, Any]:
        """All of this model that can change a row of the output; JSON values."""
        return {
            "architecture": self.architecture,
            "preprocessing": self.preprocessing,
            "tensors_sha256": self.tensors_sha256,
        }


def read_card(weights_dir: Path, role: str, name: str) -> WeightCard:
    """The card of one model, its weights file checked against it.

    Raises WeightsError when either file is missing, the card cannot be read, or the weights are not those of the card.
    """
    path = weights_dir / f"{role}-{name}.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(p.stem.removeprefix(f"{role}-") for p in weights_dir.glob(f"{role}-*.json"))
        raise WeightsError(
            f"there is no {role} {name!r}: {path} does not exist; "
            + (f"available: {', '.join(known)}" if known else f"{weights_dir} holds no {role}")
        ) from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON ({error}); restore it from its source") from None
    card = _parse_card(path, values)
    if (card.role, card.name) != (role, name):
        raise WeightsError(f"{path} describes the {card.role} {card.name!r}: rename the file or mend the card")
    digest = tensors_digest(_checked_bytes(weights_dir, card))
    if digest != card.tensors_sha256:
        raise WeightsError(f"{path}: tensors_sha256 is {card.tensors_sha256}, the tensors have {digest}; mend the card")
    return card


def load_tensors(weights_dir: Path, card: WeightCard) -> dict[str, torch.Tensor]:
    """The tensors of a model on the CPU by name; those of half precision as float32. Raises WeightsError."""
    import safetensors.torch
    import torch

    tensors = safetensors.torch.load(_checked_bytes(weights_dir, card))
    return {
        name: tensor.to(torch.float32) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
    }


def fill_network(network: torch.nn.Module, weights_dir: Path, card: WeightCard) -> None:
    """Load a model's tensors into the network that its card describes. Raises WeightsError where they do not fit."""
    try:
        network.load_state_dict(load_tensors(weights_dir, card))
    except RuntimeError as error:
        raise WeightsError(
            f"{card.role} {card.name!r}: its tensors are not those of {card.architecture}: {error}"
        ) from None


def save_model(
    weights_dir: Path, card_fields: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], *, half: bool = False
) -> WeightCard:
    """Write a model's two files, the card last, and return the card.

    card_fields: the fields of `WeightCard` but for the two digests, which are worked out here.
    half: store floats in half precision; `load_tensors` gives float32 either way.
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
    _write(weights_dir / card.file_name, content)
    write_card(weights_dir, card)
    return card


def write_card(weights_dir: Path, card: WeightCard) -> None:
    """Write a model's card; for figures measured later, its weights file stays as it is."""
    text = json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n"
    _write((weights_dir / card.file_name).with_suffix(".json"), text.encode())


def fetch_weights(uri_or_dir: str | Path, cache_dir: Path) -> Path:
    """A local folder with the weights of `uri_or_dir`.

    A local folder is returned as it is. A folder on an object store (`s3://…`, `gs://…`, `az://…`; credentials, region
    and endpoint from the environment) is copied into a folder of its own under cache_dir; weights that are there
    already and match their card are not copied again. Of several processes that ask at once, one copies and the others
    wait for it. cache_dir must be this user's alone: whoever else could write to it could put other weights there after
    they were checked. Raises WeightsError.
    """
    if "://" not in str(uri_or_dir):
        if not Path(uri_or_dir).is_dir():
            raise WeightsError(f"weights: {uri_or_dir} is not a folder; give a folder or a bucket URI")
        return Path(uri_or_dir)

    import obstore
    from obstore.exceptions import BaseError
    from obstore.store import from_url

    uri = str(uri_or_dir).rstrip("/")
    target = own_folder(cache_dir) / hashlib.sha256(uri.encode()).hexdigest()[:16]
    target.mkdir(mode=0o700, exist_ok=True)
    plain_http = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")     # a server of one's own
    try:
        store = from_url(uri, client_options={"allow_http": plain_http})
        with _alone(target):
            objects = obstore.list_with_delimiter(store)["objects"]
            names = sorted(name for entry in objects if (name := entry["path"].rpartition("/")[2]).endswith(".json"))
            for name in names:
                content = bytes(obstore.get(store, name).bytes())
                card = _parse_card(f"{uri}/{name}", json.loads(content))
                local = target / card.file_name
                if not local.exists() or hashlib.sha256(local.read_bytes()).hexdigest() != card.sha256:
                    _write(local, bytes(obstore.get(store, card.file_name).bytes()))
                _write(target / name, content)
    except (BaseError, OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"weights: cannot copy {uri}: {str(error).splitlines()[0]}") from error
    if not names:
        raise WeightsError(f"weights: {uri} holds no model card (*.json)")
    return target


def own_folder(folder: Path) -> Path:
    """The folder, made if need be, that this user alone can write to. Raises WeightsError for anything else there.

    The name of a folder for temporary files can be guessed, so another user may have been there first.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()                   # not stat: it would follow a link
    except OSError as error:
        raise WeightsError(f"cannot make the folder {folder}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise WeightsError(
            f"{folder} is no folder of this user alone, so others may have put things there: remove it, or name "
            "another place for temporary files by TMPDIR"
        )
    return folder


def tensors_digest(content: bytes) -> str:
    """sha256 over the tensors of a safetensors file, in the order of their names: name, dtype, shape, bytes.

    Unlike the file's own sha256 it does not depend on the order and the comments that a writer chose.
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


def _parse_card(origin: Path | str, values: Any) -> WeightCard:
    """A card from the values of its JSON; origin names it in the WeightsError."""
    known = {f.name for f in fields(WeightCard)}
    if not isinstance(values, dict):
        raise WeightsError(f"{origin} is no model card: an object is expected, got {type(values).__name__}")
    if missing := sorted(known - {"thresholds"} - values.keys()):
        raise WeightsError(f"{origin} is no model card: {', '.join(missing)} missing")
    if extra := sorted(values.keys() - known):
        raise WeightsError(f"{origin} has fields that this version does not know: {', '.join(extra)}")
    try:
        return WeightCard(**values)
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{origin} is no model card: {error}") from None


def _checked_bytes(weights_dir: Path, card: WeightCard) -> bytes:
    path = weights_dir / card.file_name
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing, only its card is there; copy it beside the card") from None
    digest = hashlib.sha256(content).hexdigest()
    if digest != card.sha256:
        raise WeightsError(f"{path} is damaged or not its card's: sha256 {digest}, the card says {card.sha256}")
    return content


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it when a process dies."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _require_keys(what: str, mapping: Mapping[str, Any], *keys: str) -> None:
    missing = [key for key in keys if key not in mapping]
    if missing:
        raise ValueError(f"{what} must have {', '.join(missing)}, got {sorted(mapping)}")


def _write(path: Path, content: bytes) -> None:
    """Write a whole file or none: other processes on this machine may read it at any moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)
