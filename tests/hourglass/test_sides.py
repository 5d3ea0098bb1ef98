"""Left and right in the names of joints."""

import pytest

from common.errors import UserError
from hourglass import poses, sides


@pytest.mark.parametrize("labels, pairs", [
    (["nose", "left_eye", "right_eye"], [(1, 2)]),
    (["r_paw", "l_paw", "tail", "right hip", "left hip"], [(1, 0), (4, 3)]),
    (["L_Eye", "R_Eye", "Nose", "Left Hand", "Right Hand"], [(0, 1), (3, 4)]),
    (["ear_left", "ear_right", "eyeL", "eyeR", "HIP_RIGHT", "HIP_LEFT"], [(0, 1), (2, 3), (5, 4)]),
    (["forelegL1", "forelegR1", "forelegL2", "forelegR2"], [(0, 1), (2, 3)]),
    (["1L", "1R", "2R", "2L", "toe.L", "toe.R"], [(0, 1), (3, 2), (4, 5)]),
    (["leftEye", "rightEye", "LHip", "RHip", "lefthand", "righthand"], [(0, 1), (2, 3), (4, 5)]),
    (["left-hip", "Right Hip"], [(0, 1)]),
    (["Lear", "Rear", "Larm", "Rarm", "earleft", "earright", "eyel", "eyer"], [(0, 1), (2, 3), (4, 5), (6, 7)]),
    (["FL", "FR", "HL", "HR"], [(0, 1), (2, 3)]),                   # fore and hind, the side behind
    (["LF", "LR", "RF", "RR"], [(0, 2), (1, 3)]),                   # the side in front, then front and rear
    (["left_eye_left", "left_eye_right", "right_eye_left", "right_eye_right"], [(0, 3), (1, 2)]),
    (["left_L5", "right_L5", "left_L4", "right_L4"], [(0, 1), (2, 3)]),
    (["tail", "lower_lip", "upper_lip", "collar", "rear", "upright", "1", "2"], []),
])
def test_pairs(labels, pairs):
    assert sides.pairs_of(labels) == pairs and sides.unpaired(labels) == []


@pytest.mark.parametrize("labels, alone", [
    (["nose", "left_eye", "right_eye", "ear_left"], ["ear_left"]),
    (["earL", "nose", "hip_right"], ["earL", "hip_right"]),
    (["L5", "T12"], ["L5"]),                                        # of the spine: --pairs none
    (["left_eye", "l_eye", "right_eye"], ["left_eye", "l_eye", "right_eye"]),
    (["left", "right"], []),
])
def test_sides_without_a_partner(labels, alone):
    assert sides.unpaired(labels) == alone


def test_words_beside_the_side():
    joints = sides.read(["HIP_LEFT", "hipRight", "Lear", "Rear", "forelegL1", "nose_tip2", "lefteye"])
    assert [joint.words for joint in joints] == [("hip",), ("hip",), ("ear",), ("ear",), ("foreleg",), ("nose", "tip"),
                                                 ("eye",)]
    assert [joint.side for joint in joints] == ["left", "right", "left", "right", "left", "", "left"]
    assert joints[0].partner == 1 and joints[4].partner is None


def test_pairs_by_hand():
    labels = ["a", "b", "left c", "d"]
    assert sides.parse_pairs("b:a, left c : d", labels) == [(1, 0), (2, 3)]
    assert sides.parse_pairs(" None ", labels) == []
    for text, words in (("a-b", "has 'a-b'"), ("", "has ''"), ("a:e", "'e' is none of a, b, left c, d"),
                        ("a:b,b:d", "every joint once, and names 'b' 2 times"), ("a:a", "names 'a' 2 times"),
                        ("a:b:d", "has 'a:b:d'")):
        with pytest.raises(UserError, match=words):
            sides.parse_pairs(text, labels)


def test_known_bodies():
    labels = poses.MPII.labels
    assert sorted(map(sorted, poses.MPII.pairs)) == [[0, 5], [1, 4], [2, 3], [10, 15], [11, 14], [12, 13]]
    for body in (poses.MPII, poses.LSP):
        assert {joint for limb in body.skeleton for joint in limb} == set(range(len(body.labels)))
        assert body.mirrors
    assert labels[13].startswith("left") and labels[2].startswith("right")   # the torso that PCK takes
