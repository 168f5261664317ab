from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.store import (
    WeightCard,
    WeightsError,
    fetch_weights,
    read_card,
    read_model,
    save_model,
    tensors_digest,
    write_card,
)
from pipeline.storage import open_storage

FIELDS = {
    "name": "tiny",
    "role": "detector",
    "architecture": {"network": "yolov8n", "classes": 1},
    "preprocessing": {"input_px": 640, "mean": [0, 0, 0], "std": [255, 255, 255], "colour_order": "RGB"},
    "licence": "AGPL-3.0",
    "commercial_use": False,
    "started_from": "random weights",
    "data": [{"name": "made up", "licence": "none"}],
    "metrics": {"ap50": 0.5},
    "command": "python -m jobs.train",
}
TENSORS = {"weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "bias": torch.tensor([0.5]), "count": torch.tensor(7)}


def save(folder: Path, half: bool = False, **changed: object) -> WeightCard:
    return save_model(folder, {**FIELDS, **changed}, TENSORS, half=half)


def rewrite_card(folder: Path, **changed: object) -> None:
    path = folder / "detector-tiny.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


@pytest.mark.parametrize(
    ("tensors", "half", "stored_dtype"),
    [({}, False, None), (TENSORS, False, "F32"), (TENSORS, True, "F16")],
)
def test_a_saved_model_reads_back_as_float32(tmp_path: Path, tensors, half, stored_dtype) -> None:
    card = save_model(tmp_path / "new", FIELDS, tensors, half=half)
    assert read_card(tmp_path / "new", "detector", "tiny") == card
    loaded = read_model(tmp_path / "new", "detector", "tiny").tensors()
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)      # these values are exact in half precision
    content = (tmp_path / "new" / "detector-tiny.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header.get("weight", {}).get("dtype") == stored_dtype


def test_saving_leaves_only_the_two_files(tmp_path: Path) -> None:
    save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["detector-tiny.json", "detector-tiny.safetensors"]


def test_a_card_can_get_new_figures(tmp_path: Path) -> None:
    card = save(tmp_path)
    write_card(tmp_path, replace(card, metrics={"recall": 0.9}))
    read = read_card(tmp_path, "detector", "tiny")
    assert read.metrics == {"recall": 0.9}
    assert read.fingerprint() == card.fingerprint()


def test_tensors_that_share_memory_can_be_saved(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    save_model(tmp_path, FIELDS, {"a": shared[:2], "b": shared[1:3]})
    assert read_model(tmp_path, "detector", "tiny").tensors()["b"].tolist() == [1.0, 2.0]


def test_the_digest_is_of_names_dtypes_shapes_and_bytes(tmp_path: Path) -> None:
    card = save_model(tmp_path, FIELDS, {"b": torch.tensor([1.0]), "a": torch.tensor([[2.0]])})
    by_hand = hashlib.sha256(
        b'["a", "F32", [1, 1]]' + b"\x00\x00\x00\x40" + b'["b", "F32", [1]]' + b"\x00\x00\x80\x3f"
    ).hexdigest()
    assert card.tensors_sha256 == by_hand
    assert card.identity == f"tiny-face@{by_hand[:12]}"
    assert card.fingerprint() == {
        "architecture": FIELDS["architecture"], "preprocessing": FIELDS["preprocessing"], "tensors_sha256": by_hand,
    }


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1.0, 3.0])},
        {"b": torch.tensor([1.0, 2.0])},
        {"a": torch.tensor([[1.0, 2.0]])},
        {"a": torch.tensor([1.0, 2.0]).view(torch.int32)},
        {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(0)},
    ],
    ids=["value", "name", "shape", "dtype", "one more"],
)
def test_any_change_of_the_tensors_changes_the_digest(tmp_path: Path, other) -> None:
    one = save_model(tmp_path / "1", FIELDS, {"a": torch.tensor([1.0, 2.0])})
    assert save_model(tmp_path / "2", FIELDS, other).tensors_sha256 != one.tensors_sha256


@pytest.mark.parametrize("content", [b"", b"junk", b"\x02\0\0\0\0\0\0\0[]", b'\x08\0\0\0\0\0\0\0{"a": 1}'])
def test_other_bytes_than_a_safetensors_file_are_refused(content: bytes) -> None:
    with pytest.raises(WeightsError, match="not a safetensors file"):
        tensors_digest(content)


def test_the_error_for_a_missing_model_lists_the_others(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds no detector"):
        read_card(tmp_path, "detector", "tiny")
    save(tmp_path)
    save(tmp_path, name="small")
    with pytest.raises(WeightsError, match=r"no detector 'huge'.*available: small, tiny"):
        read_card(tmp_path, "detector", "huge")


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    card = save(tmp_path)
    path = tmp_path / card.file_name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"{path.name} is damaged"):
        read_card(tmp_path, "detector", "tiny")
    with pytest.raises(WeightsError, match=f"{path.name} is damaged"):
        read_model(tmp_path, "detector", "tiny", known=card)
    path.unlink()
    with pytest.raises(WeightsError, match="only its card is there"):
        read_card(tmp_path, "detector", "tiny")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tensors_sha256": "0" * 64}, "mend the card"),
        ({"name": "other"}, "describes the detector 'other'"),
        ({"sha256": "abc"}, "sha256 must be 64"),
        ({"role": "painter"}, "role must be one of"),
        ({"commercial_use": "no"}, "commercial_use must be true or false"),
        ({"architecture": {}}, "architecture must have network"),
        ({"preprocessing": {"input_px": 1}}, "preprocessing must have mean, std, colour_order"),
        ({"data": [{"name": "x"}]}, "every entry of data must have licence"),
        ({"thresholds": {"0.01": 0.3}}, "thresholds belong to embedders"),
        ({"colour": 1}, "does not know: colour"),
    ],
)
def test_the_error_for_a_wrong_card_names_the_file(tmp_path: Path, changed, message: str) -> None:
    save(tmp_path)
    rewrite_card(tmp_path, **changed)
    with pytest.raises(WeightsError, match=message) as error:
        read_card(tmp_path, "detector", "tiny")
    assert "detector-tiny.json" in str(error.value)


@pytest.mark.parametrize("digest", ["sha256", "tensors_sha256"])
def test_tensors_are_hashed_if_the_known_card_differs(tmp_path: Path, digest: str) -> None:
    """The card on this machine does not match its tensors."""
    known = replace(save(tmp_path), **{digest: "1" * 64})
    rewrite_card(tmp_path, tensors_sha256="0" * 64)
    with pytest.raises(WeightsError, match="mend the card"):
        read_model(tmp_path, "detector", "tiny", known=known)


@pytest.mark.parametrize(
    ("text", "message"), [("", "not JSON"), ("[]", "an object is expected"), ("{}", "architecture, command")]
)
def test_another_file_than_a_card_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "detector-tiny.json").write_text(text)
    with pytest.raises(WeightsError, match=message):
        read_card(tmp_path, "detector", "tiny")


@pytest.mark.parametrize("name", ["", "a/b", "a@b", "a b"])
def test_a_name_that_is_not_a_word_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="name must be a word"):
        save(tmp_path, name=name)


def test_the_driver_reads_cards_without_torch(tmp_path: Path) -> None:
    save(tmp_path)
    code = (
        "import sys; from pathlib import Path; from models.store import read_card;"
        "read_card(Path(sys.argv[1]), 'detector', 'tiny');"
        "print([m for m in ('torch', 'ultralytics', 'obstore') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_a_local_weights_folder_is_not_copied(tmp_path: Path) -> None:
    assert fetch_weights(tmp_path, tmp_path / "cache") == tmp_path
    assert not (tmp_path / "cache").exists()
    with pytest.raises(WeightsError, match="not a folder"):
        fetch_weights(tmp_path / "missing", tmp_path / "cache")


def test_weights_in_a_bucket_are_copied_once_and_again_if_damaged(tmp_path: Path, bucket) -> None:
    with pytest.raises(WeightsError, match="holds no model card"):
        fetch_weights(open_storage(f"{bucket.uri}/weights"), tmp_path / "cache")
    card = save(tmp_path / "made")
    for path in (tmp_path / "made").iterdir():
        bucket.put(f"weights/{path.name}", path.read_bytes())
    bucket.put("weights/deeper/detector-other.json", b"{}")      # in a folder below

    local = fetch_weights(open_storage(f"{bucket.uri}/weights/"), tmp_path / "cache")
    assert read_card(local, "detector", "tiny") == card
    (local / card.file_name).write_bytes(b"damaged")
    assert fetch_weights(open_storage(f"{bucket.uri}/weights"), tmp_path / "cache") == local
    assert read_card(local, "detector", "tiny") == card

    bucket.client.delete_object(Bucket=bucket.name, Key=f"weights/{card.file_name}")
    fetch_weights(open_storage(f"{bucket.uri}/weights"), tmp_path / "cache")    # they are here: no GET for them
    with pytest.raises(WeightsError, match="cannot copy"):
        fetch_weights(open_storage(f"{bucket.uri}/weights"), tmp_path / "new cache")


def test_one_model_can_be_copied_from_a_bucket(tmp_path: Path, bucket) -> None:
    save(tmp_path / "made")
    save(tmp_path / "made", name="other")
    for path in (tmp_path / "made").iterdir():
        bucket.put(f"weights/{path.name}", path.read_bytes())
    local = fetch_weights(open_storage(f"{bucket.uri}/weights"), tmp_path / "cache", "detector-other")
    assert sorted(path.name for path in local.glob("detector-*")) == [
        "detector-other.json", "detector-other.safetensors"
    ]
    with pytest.raises(WeightsError, match=r"holds no model card \(detector-third\.json\)"):
        fetch_weights(open_storage(f"{bucket.uri}/weights"), tmp_path / "cache", "detector-third")


def test_of_four_processes_one_copies_the_weights(tmp_path: Path, bucket) -> None:
    """They start at the same moment, and all find the same file."""
    save(tmp_path / "made")
    for path in (tmp_path / "made").iterdir():
        bucket.put(f"weights/{path.name}", path.read_bytes())
    code = (
        "import sys; from pathlib import Path; from pipeline.storage import open_storage\n"
        "from models.store import fetch_weights, read_card\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "folder = fetch_weights(open_storage(sys.argv[1]), Path(sys.argv[2]))\n"
        "print((folder / read_card(folder, 'detector', 'tiny').file_name).stat().st_ino)"
    )
    command = [sys.executable, "-c", code, f"{bucket.uri}/weights", str(tmp_path / "cache")]
    fetching = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.stdout.readline() for process in fetching] == ["ready\n"] * 4
    for process in fetching:
        process.stdin.write("go\n")
        process.stdin.flush()
    found = {process.communicate(timeout=60)[0] for process in fetching}
    assert len(found) == 1 and [process.returncode for process in fetching] == [0] * 4
