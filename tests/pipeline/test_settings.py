from dataclasses import replace

import pytest

from pipeline.settings import RowSettings, differences, fingerprint, fingerprinted

MODELS = {"detector": {"tensors_sha256": "aa"}, "embedder": {"tensors_sha256": "bb"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detect_px": 100}, "--detect-px must be a multiple of 32 and at least 64; got 100"),
        ({"second_pass_px": 32}, "--second-pass-px must be a multiple of 32 and at least 64; 0 turns"),
        ({"min_score": 0}, "--min-score must lie between 0 and 1, got 0"),
        ({"nms_iou": 1.5}, "--nms-iou must lie between 0 and 1"),
        ({"min_face_px": -1}, "--min-face-px must be a number and not negative"),
        ({"min_face_px": float("nan")}, "must be a number"),
        ({"max_faces": 0}, "--max-faces must be at least 1; 0 keeps all faces"),
        ({"max_pixels": 0}, "--max-pixels must be at least 1"),
        ({"decode_scale": "half"}, '--decode-scale must be "auto" or "full"'),
        ({"embedding_dtype": "int8"}, "--embedding-dtype must be one of float32, float16"),
    ],
)
def test_a_wrong_setting_names_the_option_and_the_value(changes, message):
    with pytest.raises(ValueError, match=message):
        RowSettings(**changes)


def test_decoding_keeps_twice_the_detector_input():
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
