"""Other face libraries, as their manuals use them, in the environment of `make bench-peers`. `jobs.bench all` runs it.

That environment has none of our libraries: this module imports only `measurement` of ours.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from jobs.bench.measurement import Measure, Measurement, serve

CountFaces = Callable[[Path], int]
"""Finds and embeds the faces of a photo; returns how many."""


def facenet(device: str, weights: Path | None) -> CountFaces:
    """facenet-pytorch: MTCNN, whose weights are in the package, and InceptionResnetV1.

    weights: of InceptionResnetV1, a file of its `load_state_dict`. Without one its weights are random, which takes the
    same time.
    """
    import torch
    from facenet_pytorch import MTCNN, InceptionResnetV1
    from PIL import Image

    find = MTCNN(keep_all=True, device=device)
    network = InceptionResnetV1(pretrained=None, classify=False)
    if weights:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=False)
    network.eval().to(device)

    def faces_of(path: Path) -> int:
        with Image.open(path) as photo, torch.inference_mode():
            crops = find(photo.convert("RGB"))
            if crops is None:
                return 0
            return len(network(crops.to(device)).cpu())

    return faces_of


def face_recognition(device: str, weights: Path | None) -> CountFaces:
    """face_recognition: dlib's HOG detector on a CPU, its network on CUDA; the weights are in a package."""
    import dlib
    import face_recognition as library

    if device == "cuda" and not dlib.DLIB_USE_CUDA:
        raise SystemExit("this dlib was built without CUDA")
    model = "cnn" if device == "cuda" else "hog"

    def faces_of(path: Path) -> int:
        photo = library.load_image_file(path)
        return len(library.face_encodings(photo, library.face_locations(photo, model=model)))

    return faces_of


PEERS = {"facenet-pytorch": facenet, "face_recognition": face_recognition}


def prepare(name: str, photos: Sequence[Path], device: str, weights: Path | None) -> Measure:
    """Load the library's models and warm up."""
    faces_of = PEERS[name](device, weights)
    faces_of(photos[0])
    return partial(measure, name, faces_of, photos)


def measure(name: str, faces_of: CountFaces, photos: Sequence[Path]) -> list[Measurement]:
    """One round over all photos."""
    started = time.perf_counter()
    faces = sum(map(faces_of, photos))
    return [Measurement(f"peer: {name}", len(photos) / (time.perf_counter() - started), notes={"faces": faces})]


if __name__ == "__main__":
    peer, folder, chosen_device, *weights_file = sys.argv[1:]
    file = Path(weights_file[0]) if weights_file else None
    serve(lambda: prepare(peer, sorted(Path(folder).iterdir()), chosen_device, file))
