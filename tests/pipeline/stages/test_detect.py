import numpy as np
import pytest

from pipeline.batch import NO_PIXELS, ImageBatch, ImageRecord, Status
from pipeline.stages.detect import Detect, DetectModel
from pipeline.stages.looks import Looks
from pipeline.stages.operations import cut_chip, letterbox


def white_squares(canvases):
    """A detector for tests: the white patch of a canvas is a face; its score is its share of the canvas.

    Its points are the four corners of the box in a circle, and the middle.
    """
    found = []
    for canvas in canvases:
        ys, xs = np.nonzero(canvas.min(axis=2) > 250)
        if len(xs):
            box = [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]
            score = [len(xs) / canvas[..., 0].size]
        else:
            box, score = np.zeros((0, 4)), []
        found.append((np.array(box, np.float32), np.array(score, np.float32), corners_and_middle(np.array(box))))
    return found


def corners_and_middle(boxes):
    x1, y1, x2, y2 = boxes.T
    points = np.stack([x1, y1, x2, y1, (x1 + x2) / 2, (y1 + y2) / 2, x2, y2, x1, y2], 1)
    return points.reshape(-1, 5, 2).astype(np.float32)


def picture(width, height, *squares):
    pixels = np.zeros((height, width, 3), np.uint8)
    for x1, y1, x2, y2 in squares:
        pixels[y1:y2, x1:x2] = 255
    pixels.flags.writeable = False
    return pixels


def detect(model=white_squares, batch_size=2, **changes):
    settings = {"looks": Looks(64), "nms_iou": 0.5, "second_pass_px": None, "min_face_px": 0, "max_faces": None,
                "rotate_retry": False}
    model = DetectModel(model, batch_size)
    return Detect(model, **{"few": model} | settings | changes)


def batch_of(*images, scale=1):
    records = tuple(
        ImageRecord(f"{i}.jpg", width=p.shape[1] * scale, height=p.shape[0] * scale) for i, p in enumerate(images)
    )
    return ImageBatch(records, tuple(images))


@pytest.mark.parametrize(("width", "height"), [(64, 64), (100, 50), (10, 200), (1, 1), (5000, 3)])
def test_letterbox_maps_back(width, height):
    pixels = np.full((height, width, 3), 255, np.uint8)
    canvas, back = letterbox(pixels, 64)
    assert canvas.shape == (64, 64, 3)
    ys, xs = np.nonzero((canvas == 255).all(axis=2))
    corners = np.array([[xs.min(), ys.min()], [xs.max() + 1, ys.max() + 1]], float)
    assert np.allclose(corners @ back[:, :2].T + back[:, 2], [[0, 0], [width, height]])
    assert (canvas[(canvas != 255).any(axis=2)] == 114).all()


def test_image_without_a_face():
    faces = detect()(batch_of(picture(8, 8)))
    assert faces.face_counts.tolist() == [0] and faces.records[0].status is Status.NO_FACE


def test_boxes_are_in_pixels_of_the_original():
    faces = detect()(batch_of(picture(64, 32, (8, 4, 24, 20)), scale=4))     # decoded at 1/4
    assert faces.boxes_xyxy.tolist() == [[32, 16, 96, 80]]
    assert faces.points5.tolist() == [[[32, 16], [96, 16], [64, 48], [96, 80], [32, 80]]]
    record = faces.records[0]
    assert (record.status, record.n_faces, record.detect_pass, record.rotation_deg) == (Status.OK, 1, 1, 0)
    # The chip is a square of 1.6 × 16 decoded pixels; the matrix maps it to original pixels.
    chip, to_image = faces.chips[0], faces.chip_to_image[0]
    assert chip.shape == (26, 26, 3) and to_image.tolist() == [[4, 0, 12], [0, 4, -4]]


def test_images_without_pixels_pass_through():
    broken = ImageRecord("broken.jpg", status=Status.UNREADABLE, error="cut off")
    good = ImageRecord("good.jpg", width=64, height=64)
    faces = detect()(ImageBatch((broken, good, broken), (NO_PIXELS, picture(64, 64, (0, 0, 9, 9)), NO_PIXELS)))
    assert faces.records[0] is broken and faces.face_counts.tolist() == [0, 1, 0]


def several(canvases):
    boxes = np.array([[0, 0, 30, 30], [40, 0, 60, 20], [0, 40, 20, 60], [30, 30, 34, 60]], np.float32)
    return [(boxes, np.array([0.5, 0.9, 0.9, 0.7], np.float32), corners_and_middle(boxes))] * len(canvases)


def test_faces_are_sorted_by_score_then_y_then_x():
    faces = detect(several)(batch_of(picture(64, 64)))
    assert faces.boxes_xyxy[:, :2].tolist() == [[40, 0], [0, 40], [30, 30], [0, 0]]
    assert np.allclose(faces.scores, [0.9, 0.9, 0.7, 0.5])
    assert faces.points5.tolist() == corners_and_middle(faces.boxes_xyxy).tolist()


@pytest.mark.parametrize(
    ("changes", "count", "truncated"),
    [({}, 4, False), ({"max_faces": 2}, 2, True), ({"max_faces": 4}, 4, False), ({"min_face_px": 5}, 3, False),
     ({"min_face_px": 5, "max_faces": 3}, 3, False), ({"min_face_px": 99}, 0, False)],
)
def test_limits(changes, count, truncated):
    record = detect(several, **changes)(batch_of(picture(64, 64))).records[0]
    assert (record.n_faces, record.faces_truncated) == (count, truncated)


def only_at(side_px):
    return lambda canvases: white_squares(canvases) if canvases.shape[1] == side_px else white_squares(canvases * 0)


def test_only_images_without_a_face_get_a_second_pass():
    seen = []

    def model(canvases):
        seen.append((canvases.shape[1], len(canvases)))
        return only_at(32)(canvases) if canvases.shape[1] == 32 else white_squares(canvases)

    empty, face = picture(64, 64), picture(64, 64, (0, 0, 20, 20))
    faces = detect(model, second_pass_px=32)(batch_of(face, empty, face))
    assert seen == [(64, 2), (64, 1), (32, 1)]
    assert [record.detect_pass for record in faces.records] == [1, 1, 1]
    found = detect(only_at(32), second_pass_px=32)(batch_of(face))
    assert found.records[0].detect_pass == 2 and found.boxes_xyxy.tolist() == [[0, 0, 20, 20]]


def wide_squares(canvases):
    """Finds a white patch only if it is wider than high."""
    return [(b, s, p) if len(b) and b[0, 2] - b[0, 0] > b[0, 3] - b[0, 1] else (b[:0], s[:0], p[:0])
            for b, s, p in white_squares(canvases)]


def test_rotate_retry_reports_upright_coordinates():
    tall = picture(64, 48, (10, 4, 16, 40))
    assert detect(wide_squares)(batch_of(tall)).records[0].status is Status.NO_FACE
    faces = detect(wide_squares, rotate_retry=True)(batch_of(tall, scale=2))
    assert faces.boxes_xyxy.tolist() == [[20, 8, 32, 80]]
    assert faces.records[0].rotation_deg == 90
    # The point at the top left of the turned picture is at the bottom left of the upright one.
    assert faces.points5[0].tolist() == [[20, 80], [20, 8], [26, 44], [32, 8], [32, 80]]
    # The chip is turned: the patch is wide in it, and its middle maps to the middle of the box.
    chip = faces.chips[0]
    ys, xs = np.nonzero(chip.min(axis=2) > 250)
    assert np.ptp(xs) > np.ptp(ys)
    middle = np.array([[[(xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2]]])
    assert np.allclose(faces.chip_points_to_image(middle), [[[26, 44]]])


@pytest.mark.parametrize("side", [40, 400, 3000])
@pytest.mark.parametrize("corner", [(0, 0), (1, 1), (0.3, 0.6)])
def test_chip_maps_back_at_every_size_and_edge(side, corner):
    """The matrix maps the white patch in the chip back to the box, to half a chip pixel."""
    width, height = 2 * side, 2 * side
    x, y = round(corner[0] * (width - side)), round(corner[1] * (height - side))
    box = np.array([x, y, x + side, y + side], np.float32)
    chip, to_image = cut_chip(picture(width, height, (x, y, x + side, y + side)), box)
    assert chip.shape == (min(256, round(1.6 * side)),) * 2 + (3,)
    # A patch at the edge of the image is repeated to the edge of the chip, so only the other sides are compared.
    white = chip[..., 0] > 127
    for axis, (low, high) in enumerate(((x, x + side), (y, y + side))):
        line = np.nonzero(white.any(axis=axis))[0]
        scale, shift = to_image[axis, axis], to_image[axis, 2]
        if low > 0:
            assert line.min() * scale + shift == pytest.approx(low, abs=0.51 * scale)
        if high < 2 * side:
            assert (line.max() + 1) * scale + shift == pytest.approx(high, abs=0.51 * scale)


def test_the_batch_size_changes_no_face():
    images = [picture(64, 64, (i, i, i + 8 + i, i + 9)) for i in range(5)]
    one = detect(batch_size=1)(batch_of(*images))
    three = detect(batch_size=3)(batch_of(*images))
    assert np.array_equal(one.boxes_xyxy, three.boxes_xyxy) and one.records == three.records


def test_a_long_picture_is_looked_at_in_windows():
    """At 640×32 a face of 6 px is less than a pixel of the input; in a window of 64×32 it has 6."""
    pixels = picture(640, 32, (70, 10, 76, 16), (600, 4, 606, 10))
    whole = detect(large_enough)(batch_of(pixels, scale=8))
    assert (whole.records[0].status, whole.records[0].tiles) == (Status.NO_FACE, 1)
    faces = detect(large_enough, looks=Looks(64, long_windows=True))(batch_of(pixels, scale=8))
    assert sorted(map(tuple, faces.boxes_xyxy.tolist())) == [(560, 80, 608, 128), (4800, 32, 4848, 80)]
    assert faces.points5.tolist() == corners_and_middle(faces.boxes_xyxy).tolist()
    assert (faces.records[0].n_faces, faces.records[0].tiles, faces.records[0].detect_pass) == (2, 14, 1)


@pytest.mark.parametrize(("width", "height"), [(60_000, 1), (1, 60_000)])
def test_a_line_of_one_pixel_is_looked_at_in_windows(width, height):
    """In windows of 600 px, each 450 px after the one before, and as a whole."""
    faces = detect(looks=Looks(64, long_windows=True))(batch_of(picture(width, height)))
    assert (faces.records[0].status, faces.records[0].tiles) == (Status.NO_FACE, 134)


def large_enough(canvases):
    """White squares of at least 5 px, every one."""
    return [(boxes[keep], scores[keep], points[keep]) for boxes, scores, points in white_squares(canvases)
            for keep in [(boxes[:, 2:] - boxes[:, :2]).min(axis=1, initial=99) >= 5 if len(boxes) else slice(0)]]


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_windows_give_the_same_rows_in_every_batch(batch_size):
    images = [picture(640, 32, (70, 10, 76, 16)), picture(64, 64, (3, 3, 20, 20)), picture(30, 300, (5, 200, 15, 210))]
    looks = Looks(64, long_windows=True)
    together = detect(large_enough, looks=looks, batch_size=batch_size)(batch_of(*images, scale=8))
    alone = [detect(large_enough, looks=looks, batch_size=2)(batch_of(image, scale=8)) for image in images]
    assert together.boxes_xyxy.tolist() == [box for each in alone for box in each.boxes_xyxy.tolist()]
    assert [record.tiles for record in together.records] == [each.records[0].tiles for each in alone] == [14, 1, 8]


@pytest.mark.parametrize(
    ("changes", "long_wh", "many", "few"),
    [
        ({}, (400, 100), [64, 64], []),
        ({"second_pass_px": 32}, (400, 100), [64, 64], [32]),
        ({"rotate_retry": True}, (400, 100), [64, 64], [64, 64, 64]),
        ({"looks": Looks(64, long_windows=True)}, (400, 100), [64, 64], [64, 64]),
        ({"looks": Looks(64, find_px=20)}, (100, 25), [64, 64, 64], []),      # most looks are windows then
    ],
)
def test_few_images_need_further_looks(changes, long_wh, many, few):
    """Three images, the last one long and without a face, in batches of 2: the sides of the canvases of every call."""
    called = {"many": [], "few": []}

    def noting(name):
        def model(canvases):
            called[name].append(canvases.shape[1])
            return white_squares(canvases)
        return model

    square = picture(64, 64, (0, 0, 20, 20))
    detect(noting("many"), few=DetectModel(noting("few"), 2), **changes)(
        batch_of(square, square, picture(*long_wh))
    )
    assert called == {"many": many, "few": few}
