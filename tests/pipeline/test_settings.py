from dataclasses import replace

import pytest

from pipeline.settings import RowSettings, differences, fingerprint, fingerprinted

MODELS = {"detector": {"tensors_sha256": "aa"}, "embedder": {"tensors_sha256": "bb"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detect_px": 100}, "--detect-px must be a multiple of 32 from 64 to 8192; got 100"),
        ({"detect_px": 8224}, "--detect-px must be a multiple of 32 from 64 to 8192; got 8224"),
        ({"second_pass_px": 32}, "--second-pass-px must be a multiple of 32 from 64 to 8192; 0 turns"),
        ({"min_score": 0}, "--min-score must lie between 0 and 1, got 0"),
        ({"nms_iou": 1.5}, "--nms-iou must lie between 0 and 1"),
        ({"min_face_px": -1}, "--min-face-px must be a number and not negative"),
        ({"min_face_px": float("nan")}, "must be a number"),
        ({"max_faces": 0}, "--max-faces must be at least 1; 0 keeps all faces"),
        ({"max_pixels": 0}, "--max-pixels must be at least 1"),
        ({"decode_scale": "half"}, '--decode-scale must be "auto" or "full"'),
        ({"long_pictures": "cut"}, '--long-pictures must be "windows" or "whole"'),
        ({"align_by": "nose"}, '--align-by must be "both" or "eyes"'),
        ({"find_px": 3}, "--find-px must be at least 4; 0 turns it off"),
        ({"embedding_dtype": "int8"}, "--embedding-dtype must be one of float32, float16"),
    ],
)
def test_a_wrong_setting_names_the_option_and_the_value(changes, message):
    with pytest.raises(ValueError, match=message):
        RowSettings(**changes)


def test_settings_of_later_versions_are_left_out_of_the_fingerprint_while_they_mean_what_was_before():
    before = RowSettings(long_pictures="whole")
    assert "long_pictures" not in fingerprinted(before, {})["settings"]
    assert "find_px" not in fingerprinted(RowSettings(), {})["settings"]
    now = fingerprinted(RowSettings(find_px=20), {})["settings"]
    assert (now["long_pictures"], now["find_px"]) == ("windows", 20)


@pytest.mark.parametrize(
    ("begun_with", "given", "long_pictures"),
    [
        ({}, (), "whole"),                                        # begun by version 0.1.0
        ({}, ("long_pictures",), "windows"),                      # the user insists, and is refused
        ({"long_pictures": "windows"}, (), "windows"),
    ],
)
def test_a_run_goes_on_as_the_output_was_begun(begun_with, given, long_pictures):
    assert RowSettings().going_on(begun_with, given).long_pictures == long_pictures


def test_the_settings_of_an_output_of_any_version():
    assert RowSettings.of_output({"min_score": 0.5}) == RowSettings(
        min_score=0.5, long_pictures="whole", align_by="eyes")
    later = {"long_pictures": "windows", "find_px": 9, "align_by": "both"}
    assert RowSettings.of_output(later) == RowSettings(find_px=9)


@pytest.mark.parametrize("name", RowSettings.__slots__)
def test_every_setting_changes_the_fingerprint(name):
    other = {"detect_px": 960, "second_pass_px": None, "min_score": 0.6, "nms_iou": 0.4, "min_face_px": 9.0,
             "max_faces": 3, "rotate_retry": True, "decode_scale": "full", "max_pixels": 1,
             "embedding_dtype": "float16", "long_pictures": "whole", "find_px": 20, "jpeg_decoder": "nvjpeg",
             "align_by": "eyes"}
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
