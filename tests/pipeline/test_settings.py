from dataclasses import replace

import pytest

from pipeline.settings import RowSettings, differences, fingerprint, fingerprinted

MODELS = {"detector": {"tensors_sha256": "aa"}, "embedder": {"tensors_sha256": "bb"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detect_px": 100}, "detect_px must be a multiple of 32"),
        ({"second_pass_px": 32}, "second_pass_px must be a multiple of 32 and at least 64"),
        ({"min_score": 0}, "min_score must lie between 0 and 1"),
        ({"nms_iou": 1.5}, "nms_iou"),
        ({"min_face_px": -1}, "not negative"),
        ({"min_face_px": float("nan")}, "must be a number"),
        ({"max_faces": 0}, "max_faces must be at least 1"),
        ({"max_pixels": 0}, "max_pixels"),
        ({"decode_scale": "half"}, 'must be "auto" or "full"'),
        ({"embedding_dtype": "int8"}, "float32, float16"),
    ],
)
def test_wrong_settings_say_what_came(changes, message):
    with pytest.raises(ValueError, match=message):
        RowSettings(**changes)


def test_decode_keeps_twice_the_detectors_input():
    assert RowSettings(detect_px=960).decode_min_side_px == 1920
    assert RowSettings(decode_scale="full").decode_min_side_px is None


@pytest.mark.parametrize("name", RowSettings.__slots__)
def test_every_setting_changes_the_fingerprint(name):
    other = {"detect_px": 960, "second_pass_px": None, "min_score": 0.6, "nms_iou": 0.4, "min_face_px": 9.0,
             "max_faces": 3, "rotate_retry": True, "decode_scale": "full", "max_pixels": 1,
             "embedding_dtype": "float16"}
    changed = replace(RowSettings(), **{name: other[name]})
    ours, theirs = fingerprinted(RowSettings(), MODELS), fingerprinted(changed, MODELS)
    assert fingerprint(ours) != fingerprint(theirs)
    assert [line.split(":")[0] for line in differences(ours, theirs)] == [f"settings.{name}"]


def test_another_model_changes_the_fingerprint():
    ours = fingerprinted(RowSettings(), MODELS)
    theirs = fingerprinted(RowSettings(), MODELS | {"embedder": {"tensors_sha256": "cc"}})
    assert fingerprint(ours) != fingerprint(theirs)
    assert differences(ours, theirs) == ['models.embedder.tensors_sha256: "bb" now, "cc" in the output']


def test_the_order_of_keys_does_not_matter():
    assert fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == fingerprint({"b": {"d": 3, "c": 2}, "a": 1})
