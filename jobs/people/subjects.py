"""What the arguments of `jobs.compare` and `jobs.search` name: photos, and rows of outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.options import DEFAULT_MODELS, ArgumentError
from jobs.people.cards import find_card
from jobs.people.files import as_uri
from models.store import DEFAULT_WEIGHTS_DIR, WeightCard, read_card
from pipeline.errors import OutputError
from pipeline.people.likeness import LikenessError
from pipeline.people.names import RowName, parse_row_name
from pipeline.people.outputs import Output, Row, find_face, holds_output, open_output, vector_of
from pipeline.settings import RowSettings

if TYPE_CHECKING:      # they bring the stages, which take a third of a second: only where photos are read
    from jobs.extract.stages import Models
    from jobs.pages.pictures import FaceView
    from jobs.people.photos import PhotoFaces


@dataclass(frozen=True, slots=True)
class Face:
    """A face that an argument named. subject: the argument's number. name: the photo, or the row's image.

    row: as faces/ has it. note: why there is no view, where one was asked for.
    """

    subject: int
    name: str
    row: Row
    view: FaceView | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Faces:
    """Faces, and their vectors (n, dim) float32 in the same order."""

    faces: Sequence[Face]
    vectors: np.ndarray


@dataclass(frozen=True, slots=True)
class Place:
    """A row that an argument names, and its output."""

    name: RowName
    output: Output


class Subjects:
    """The arguments, read as far as needed to know which models make and made their vectors.

    names: photos and rows. model_names: chosen by the user, by role; for the other roles those of the first output,
    else the default. weights: the folder or bucket of the weights; None: of this repository. output: an output that the
    faces must fit, besides those of the rows. models: what reads the photos; None without photos.
    Raises a UserError for an output that cannot be read, and if two embedders would have to be compared.
    """

    def __init__(
        self, names: Sequence[str], model_names: Mapping[str, str | None], weights: str | None = None,
        output: Output | None = None,
    ) -> None:
        self.names = names
        rows = [parse_row_name(name, holds_output) for name in names]
        outputs = {row.output: open_output(row.output) for row in rows if row}
        self.places = [Place(row, outputs[row.output]) if row else None for row in rows]
        self.outputs = [*([output] if output else []), *outputs.values()]
        self._weights_dir = weights_folder(weights)
        self._model_names = model_names
        self.models = self._choose() if None in self.places else None
        refuse_other_embedders(self.outputs, self.models)

    @property
    def embedder(self) -> Mapping[str, Any]:
        """The fingerprint of the embedder of all faces."""
        if self.models:
            return self.models.embedder.fingerprint()
        return self.outputs[0].models["embedder"]

    def thresholds(self) -> tuple[Mapping[str, float], str]:
        """The embedder's cosine by false positive rate, from its card, else from an output; and its name."""
        try:
            card = self.models.embedder if self.models else find_card(self._weights_dir, "embedder", self.embedder)
        except OutputError:        # an output can be read without the weights that made it
            found = next((output.thresholds for output in self.outputs if output.thresholds), {})
            return found, str(self.embedder["architecture"]["network"])
        return card.thresholds, card.name

    def read(self, *, pictures: bool = False) -> Faces:
        """All faces, in the order of the arguments. Raises a UserError for the first argument without one.

        The rows are read before the photos, which take longer.
        """
        rows = {i: of_row(i, place, pictures=pictures) for i, place in enumerate(self.places) if place}
        photos = [i for i in range(len(self.names)) if i not in rows]
        found = dict(zip(photos, self._read_photos([self.names[i] for i in photos], pictures), strict=True))
        faces: list[Face] = []
        vectors: list[np.ndarray] = []
        for i, name in enumerate(self.names):
            if i in found:
                faces += of_photo(i, name, found[i])
                vectors += list(found[i].vectors)
            else:
                face, vector = rows[i]
                faces.append(face)
                vectors.append(vector)
        return Faces(faces, stack(faces, vectors))

    def _choose(self) -> Models:
        """The models that photos are read with. Raises OutputError, WeightsError."""
        from jobs.extract.stages import Models

        return Models(**{role: self._choose_card(role, default) for role, default in DEFAULT_MODELS.items()})

    def _choose_card(self, role: str, default: str) -> WeightCard:
        name = self._model_names.get(role)
        if self.outputs and not name:
            return find_card(self._weights_dir, role, self.outputs[0].models[role])
        return read_card(self._weights_dir, role, name or default)

    def _read_photos(self, photos: Sequence[str], pictures: bool) -> Sequence[PhotoFaces]:
        if not self.models:
            return []
        from jobs.people.photos import PhotoReader, refuse_unread

        settings = self.outputs[0].settings if self.outputs else RowSettings()
        found = PhotoReader(settings, self.models, self._weights_dir, pictures=pictures)(photos)
        for photo, faces in zip(photos, found, strict=True):
            refuse_unread(photo, faces.record)
            if not faces.rows:
                raise ArgumentError(f"no face was found in {photo}. Use a photo that shows the face larger")
        return found


def weights_folder(weights: str | None) -> Path:
    """The folder with the weights on this machine. Raises WeightsError."""
    if weights is None:
        return DEFAULT_WEIGHTS_DIR
    from jobs.extract.stages import local_weights

    return local_weights(weights)


def of_photo(subject: int, name: str, found: PhotoFaces) -> Iterator[Face]:
    """The faces of a photo."""
    for i, row in enumerate(found.rows):
        yield Face(subject, name, row, found.views[i] if found.views else None)


def of_row(subject: int, place: Place, *, pictures: bool) -> tuple[Face, np.ndarray]:
    """The face of a row, and its vector. Raises OutputError if there is no such row."""
    uris = list(dict.fromkeys([place.name.uri, as_uri(place.name.uri)]))
    row = find_face(place.output, uris, place.name.face_index)
    face = Face(subject, row["uri"], {name: value for name, value in row.items() if name != "embedding"})
    return (add_picture(face, place.output) if pictures else face), vector_of(row)


def add_picture(face: Face, output: Output) -> Face:
    """The face with its view, cut out of its photo again, or with the reason why that cannot be done."""
    from jobs.people.pictures import views_of

    place = str(face.row["uri"]), int(face.row["face_index"])
    view = views_of(output, [place])[place]
    return replace(face, note=view) if isinstance(view, str) else replace(face, view=view)


def stack(faces: Sequence[Face], vectors: Sequence[np.ndarray]) -> np.ndarray:
    """The vectors as one array. Raises LikenessError if they differ in length."""
    for face, vector in zip(faces, vectors, strict=True):
        if len(vector) != len(vectors[0]):
            raise LikenessError(
                f"the vector of {faces[0].name} has {len(vectors[0])} values, that of {face.name} {len(vector)}: "
                "vectors of two dimensions cannot be compared"
            )
    return np.array(vectors, np.float32)


def refuse_other_embedders(outputs: Sequence[Output], models: Models | None) -> None:
    """Raises LikenessError unless all vectors are of one embedder."""
    made = [(output.storage.root, output.models["embedder"]) for output in outputs]
    if models:
        made.insert(0, ("the photos", models.embedder.fingerprint()))
    for place, embedder in made[1:]:
        first, with_embedder = made[0]
        if embedder != with_embedder:
            raise LikenessError(
                f"{place} was made with the embedder {short_name(embedder)}, {first} with {short_name(with_embedder)}: "
                "vectors of two embedders cannot be compared. Leave --embedder out, or take outputs of one embedder"
            )


def short_name(embedder: Mapping[str, Any]) -> str:
    """An embedder by its network and the beginning of its digest."""
    return f"{embedder['architecture']['network']}@{embedder['tensors_sha256'][:12]}"
