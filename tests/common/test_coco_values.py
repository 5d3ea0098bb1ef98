"""Flags, numbers and sizes of COCO files in every form that tools write."""

import json

import pytest

from common import coco_values
from common.errors import UserError


@pytest.mark.parametrize("text, expected", [
    ("0", False), ("1", True), ('"0"', False), ('"1"', True), ("0.0", False), ('"1.0"', True), ("true", True),
    ("false", False), ('"false"', False), ('"False"', False), ('" TRUE "', True), ('"no"', False), ("null", False),
    ('""', False), ("2", None), ('"maybe"', None), ("[0]", None), ("{}", None), ("NaN", None)])
def test_flags(text, expected):
    assert coco_values.flag(json.loads(text)) is expected


@pytest.mark.parametrize("text, expected", [
    ("12", 12.0), ("12.5", 12.5), ('"12.5"', 12.5), ('" 7 "', 7.0), ('"1e2"', 100.0), ("-3", -3.0), ("true", None),
    ("null", None), ('""', None), ('"wide"', None), ("NaN", None), ('"inf"', None), ("[1]", None),
    ("1" + "0" * 400, None)])
def test_numbers(text, expected):
    assert coco_values.number(json.loads(text)) == expected


@pytest.mark.parametrize("entry, expected", [
    ({"width": 640, "height": 480}, (640, 480)), ({"width": 640.0, "height": "480"}, (640, 480)),
    ({"width": "640.0", "height": 480}, (640, 480)), ({}, None), ({"width": 640}, None),
    ({"width": 0, "height": 480}, None), ({"width": None, "height": ""}, None)])
def test_sizes(entry, expected):
    found = coco_values.size(entry)
    assert found == expected and (found is None or all(type(side) is int for side in found))


@pytest.mark.parametrize("width", ["wide", -640, 640.5, [640], True, float("nan")])
def test_sizes_that_are_none(width):
    with pytest.raises(ValueError, match="width"):
        coco_values.size({"width": width, "height": 480})


def test_fractions():
    assert coco_values.in_fractions([0, 0.25, 1.0, 0.5]) and coco_values.in_fractions([-0.01, 0.4, 1.02])
    assert not coco_values.in_fractions([0.25, 0.5, 2]) and not coco_values.in_fractions([0.5, -3])
    assert not coco_values.in_fractions([]) and not coco_values.in_fractions([0, 0.0])
    coco_values.refuse_fractions([0.5, 12], "a.json", "boxes")
    with pytest.raises(UserError, match="^a.json must have boxes in pixels, and all of its numbers lie between 0 and"):
        coco_values.refuse_fractions([0.5, 0.1], "a.json", "boxes")


def test_sets_of_crowds_are_said():
    assert coco_values.crowd_line("train", 2, 4) is None and coco_values.crowd_line("train", 0, 0) is None
    assert coco_values.crowd_line("train", 3, 4).startswith("train: 3 of 4 objects are crowds (iscrowd 1)")
    assert coco_values.crowd_line("val", 4, 4).startswith("val: all 4 objects are crowds")
