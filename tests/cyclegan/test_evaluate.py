"""Evaluation of both directions: numbers by hand from networks that are formulas; one replica as two."""

import json
import re

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from common.metrics import frechet
from cyclegan import evaluate, preprocess
from cyclegan.features import Features
from tests.cyclegan.domains import write_records

RNG = np.random.default_rng(0)
CONFIG = {"image_size": 8, "labels": ["cat", "dog"], "limit": 0, "seed": 0}
PLAIN = tf.distribute.get_strategy()


def pictures(count, low, high):
    """Pictures of one colour and some noise, whose means lie between low and high."""
    colours = RNG.uniform(low, high, (count, 1, 1, 3))
    return np.clip(colours + RNG.normal(0, 3, (count, 8, 8, 3)), 0, 255).astype(np.uint8)


IMAGES = {"trainA": pictures(3, 20, 90), "trainB": pictures(2, 150, 220), "testA": pictures(7, 20, 90),
          "testB": pictures(5, 150, 220)}
IMAGES["testA"][2] = 200  # the judge will take it for B


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_records(tmp_path_factory.mktemp("evaluate"), IMAGES)


def network(function):
    images = keras.Input([None, None, 3])
    return keras.Model(images, function(images))


GENERATORS = {"a2b": network(lambda x: -x), "b2a": network(lambda x: 0.5 * x)}


def means(images):
    return images.reshape(len(images), -1, 3).mean(axis=1).astype(np.float32)


def bright(images):
    """A judge for which B is what is brighter than 128; its features are the mean colours."""
    return means(images), images.reshape(len(images), -1).mean(axis=1).astype(np.float32) - 128


def described(kind="judge", extract=None, stored=None):
    return Features(bright, kind, extract, stored, "a note")


def measured(folder, features, strategy=PLAIN, generators=GENERATORS, **options):
    return evaluate.measure(evaluate.make_translate(generators, strategy), folder, strategy, CONFIG, features,
                            **{"batch_size": 4, **options})


@pytest.fixture(scope="module")
def evaluated(folder):
    """(summary, found) with the judge and, in the place of Inception, the mean colours."""
    return measured(folder, described("inception", means))


def test_translations_by_hand(evaluated):
    """A goes to -A, and that to -A / 2; what b2a would do to A itself is A / 2."""
    _, found = evaluated
    for side, direction, there, back in (("A", "a2b", -1, 0.5), ("B", "b2a", 0.5, -1)):
        images, values = IMAGES[f"test{side}"], found[direction]
        floats = images / 127.5 - 1
        assert values["index"].tolist() == list(range(len(images)))  # each once, those that fill up left out
        np.testing.assert_array_equal(values["images"], images)
        np.testing.assert_allclose(values["translated"], (there * floats + 1) * 127.5, atol=0.51)
        np.testing.assert_allclose(values["cycled"], (there * back * floats + 1) * 127.5, atol=0.51)
        size = np.abs(floats).mean(axis=(1, 2, 3))
        np.testing.assert_allclose(values["cycle"], abs(there * back - 1) * size, rtol=1e-5)
        np.testing.assert_allclose(values["identity"], abs(back - 1) * size, rtol=1e-5)


def test_figures_by_hand(evaluated):
    summary, found = evaluated
    assert (summary["pictures_a"], summary["pictures_b"], summary["split"]) == (7, 5, "test")
    assert summary["judge_accuracy"] == pytest.approx((6 / 7 + 1) / 2)
    # -A is bright where A is dark; B / 2 is still brighter than gray.
    assert summary["judged_a2b"] == pytest.approx(6 / 7) and summary["judged_a2b_before"] == pytest.approx(1 / 7)
    assert summary["judged_b2a"] == 0 and summary["judged_b2a_before"] == 0
    a, b = (frechet.statistics(means(IMAGES[f"test{side}"])) for side in "AB")
    translated = frechet.statistics(means(found["a2b"]["translated"]))
    assert summary["frechet_judge_before"] == pytest.approx(frechet.frechet_distance(*a, *b))
    assert summary["frechet_judge_a2b"] == pytest.approx(frechet.frechet_distance(*translated, *b))
    assert summary["cycle_a"] == pytest.approx(found["a2b"]["cycle"].mean())
    assert summary["identity_b2a"] == pytest.approx(found["a2b"]["identity"].mean())
    assert summary["note"] == "a note" and json.dumps(summary, allow_nan=False)
    assert summary["fid_b2a"] == pytest.approx(summary["frechet_judge_b2a"])  # the same features here
    assert not [name for name in evaluate.summarize(found, described()) if name.startswith(("fid", "kid"))]


def test_a_perfect_translation_is_at_distance_zero(folder, tmp_path):
    """B here is A, 100 brighter: adding and taking away 100 is perfect, and doing nothing is 3 * 100^2 off."""
    moved = {split: IMAGES["testA" if split.startswith("test") else "trainA"] // 2 + 100 * split.endswith("B")
             for split in IMAGES}
    other = write_records(tmp_path, moved)
    shift = 100 / 127.5
    perfect = {"a2b": network(lambda x: x + shift), "b2a": network(lambda x: x - shift)}
    summary, _ = measured(other, described("inception", means), generators=perfect)
    assert summary["frechet_judge_before"] == summary["fid_before"] == pytest.approx(30_000, rel=1e-4)
    for direction in ("a2b", "b2a"):
        for name in ("frechet_judge", "fid"):
            assert summary[f"{name}_{direction}"] == pytest.approx(0, abs=1e-3)
        # Unbiased: below 0 where the pictures are the same.
        assert summary[f"kid_{direction}"] < 0 < summary["kid_before"]
        assert f"kid_{direction}_std" not in summary  # of one subset there is none
    assert summary["cycle_a"] == pytest.approx(0, abs=1e-6)
    assert summary["identity_a2b"] == pytest.approx(shift, rel=1e-5)
    assert evaluate.score(summary) == pytest.approx(0, abs=1e-3)


def test_two_replicas_are_one(folder, evaluated, two_replicas):
    """Eight at a time, so that a half of a batch is filled up."""
    with two_replicas.scope():
        generators = {"a2b": network(lambda x: -x), "b2a": network(lambda x: 0.5 * x)}
    summary, found = measured(folder, described("inception", means), two_replicas, generators, batch_size=8)
    assert summary == evaluated[0]
    for direction, values in evaluated[1].items():
        for name, value in values.items():
            np.testing.assert_array_equal(value, found[direction][name])


def test_features_of_ones_own_have_names_of_their_own(evaluated):
    _, found = evaluated
    summary = evaluate.summarize(found, described("custom", means))
    assert summary["frechet_custom_a2b"] == pytest.approx(summary["frechet_judge_a2b"])
    assert "kernel_custom_b2a" in summary and "fid_a2b" not in summary
    stored = {"a": means(IMAGES["testA"]), "b": means(IMAGES["testB"]), "a2b": means(found["a2b"]["translated"]),
              "b2a": means(found["b2a"]["translated"])}
    again = evaluate.summarize(found, described("stored", None, stored))
    for direction in ("a2b", "b2a"):
        assert again[f"frechet_stored_{direction}"] == pytest.approx(summary[f"frechet_judge_{direction}"])
    with pytest.raises(UserError, match="features b2a must be of the 5 pictures .* and are of 4.*--pictures"):
        evaluate.summarize(found, described("stored", None, {**stored, "b2a": stored["b2a"][:4]}))


def test_limits(folder):
    summary, found = measured(folder, described(), limit=1)
    assert summary["pictures_a"] == summary["pictures_b"] == 1
    assert not [name for name in summary if "frechet" in name]  # nothing to be had from one picture
    assert evaluate.score(summary) == 1 - (summary["judged_a2b"] + summary["judged_b2a"]) / 2
    _, found = measured(folder, described(), kept=3)
    assert len(found["a2b"]["images"]) == len(found["a2b"]["cycled"]) == 3 and len(found["a2b"]["cycle"]) == 7


def test_score_goes_by_what_was_asked_for():
    every = {"judged_a2b": 0.5, "judged_b2a": 1.0, "frechet_judge_a2b": 4.0, "frechet_judge_b2a": 6.0}
    assert evaluate.score(every) == 5
    assert evaluate.score({**every, "frechet_custom_a2b": 1.0, "frechet_custom_b2a": 2.0}) == 1.5
    assert evaluate.score({**every, "fid_a2b": 60.0, "fid_b2a": 100.0}) == 80
    assert evaluate.score({"judged_a2b": 0.5, "judged_b2a": 1.0}) == 0.25


def test_best_worst_and_a_draw():
    logits = np.float32([3, -1, 5, 0, -7])
    found = {"a2b": {"logit/translated": logits, "images": np.zeros(5)},
             "b2a": {"logit/translated": logits, "images": np.zeros(4)}}  # the last was not kept
    chosen = evaluate.chosen(found, "a2b", count=2)
    assert chosen["best"].tolist() == [2, 0] and chosen["worst"].tolist() == [4, 1]
    assert evaluate.chosen(found, "b2a", count=2)["best"].tolist() == [1, 3]  # towards A is below 0
    drawn = [tuple(evaluate.chosen(found, "a2b", count=2, seed=seed)["random"]) for seed in range(20)]
    assert len(set(drawn)) > 4 and all(a < b for a, b in drawn)
    assert evaluate.chosen(found, "a2b")["random"].tolist() == list(range(5))


def test_table_names_what_it_shows(evaluated):
    summary, found = evaluated
    text = evaluate.table(summary, ["cat", "dog"])
    for words in ("7 pictures of cat, 5 of dog; the judge is right about 0.929 of them", "cat -> dog",
                  "FID (Keras's Inception), translated", f"{summary['fid_b2a']:.2f}", f"{summary['kid_a2b']:.4f}",
                  f"{summary['cycle_b']:.4f}", "a note"):
        assert words in text
    assert "FID" not in evaluate.table(evaluate.summarize(found, described()), ["cat", "dog"])


def test_a_set_with_the_domains_in_each_others_place(capsys):
    evaluate.compare_labels(["cat", "dog"], ["cat", "dog"], "set")
    assert capsys.readouterr().out == ""
    evaluate.compare_labels(["cat", "wolf"], ["cat", "dog"], "set")
    assert capsys.readouterr().out == "note: trained on cat and dog, and evaluated on cat and wolf.\n"
    with pytest.raises(UserError, match="A and B must be cat and dog, as in training, and set has dog for A. Build"):
        evaluate.compare_labels(["dog", "cat"], ["cat", "dog"], "set")


def test_figures_of_training_pictures_say_so(folder):
    summary, _ = measured(folder, described(), split="train")
    assert summary["note"].startswith("a note; 2 pictures are too few for the Frechet distance of 3 numbers")
    assert "; the judge has learnt from training pictures" in summary["note"]


def test_command(folder, tmp_path, monkeypatch, capsys):
    from absl import flags
    from tests.cyclegan.test_preprocess import Flags
    values = flags.FlagValues()
    monkeypatch.setattr(evaluate.cli, "FLAGS", values)
    monkeypatch.setattr(evaluate.cli, "flags", Flags(values))
    monkeypatch.setattr(evaluate.training, "make_strategy", lambda: PLAIN)
    config = {**CONFIG, "tfrecords": str(folder)}
    monkeypatch.setattr(evaluate.predict, "load_run", lambda *args: (GENERATORS, config))
    asked = []
    monkeypatch.setattr(evaluate.feature_sources, "load",
                        lambda *args, **options: asked.append((*args[1:], options["keep"])) or described())
    evaluate.define_flags()
    run = tmp_path / "run"
    values(["evaluate", "--run", str(run), "--pictures", str(tmp_path / "all"), "--batch_size", "3"])
    evaluate.main([])
    out = capsys.readouterr().out
    assert re.search(r"judged as target, translated +0.857 +0.000\n", out)
    summary = json.loads((run / "evaluation" / "test.json").read_text())
    assert summary["pictures_a"] == 7 and summary["judged_a2b"] == pytest.approx(6 / 7)
    names = {f"test_{way}_{kind}.png" for way in evaluate.SIDES for kind in ("best", "worst", "random")}
    assert names | {"test.json"} == {path.name for path in (run / "evaluation").iterdir()}
    assert all(str(run / "evaluation" / name) in out for name in names)
    counts = {path.name: len(list(path.iterdir())) for path in (tmp_path / "all").iterdir()}
    assert counts == {"a": 7, "b": 5, "a2b": 7, "b2a": 5}
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "all" / "b" / "000004.png"))[..., ::-1],
                                  IMAGES["testB"][4])
    sheet = cv2.imread(str(run / "evaluation" / "test_a2b_random.png"))
    assert sheet.shape == (4 * 16 - 8, 2 * 28 + 8, 3)  # seven triples in two columns
    np.testing.assert_array_equal(sheet[:8, :8, ::-1], IMAGES["testA"][0])
    # Whatever is evaluated, the judge is that of the set that was trained on; of another it is not kept.
    other = write_records(tmp_path / "other", IMAGES)
    for own, expected in ((folder, (folder, True)), (tmp_path / "gone", (other, False))):
        config["tfrecords"] = str(own)
        values(["evaluate", "--run", str(run), "--tfrecords", str(other)])
        evaluate.main([])
        assert asked[-1] == (expected[0], str(run), expected[1])
    assert asked[0] == (folder, str(run), True)
    # Fewer pictures into the same folder leave earlier ones there, which is said.
    capsys.readouterr()
    values(["evaluate", "--run", str(run), "--pictures", str(tmp_path / "all"), "--limit", "6"])
    config["tfrecords"] = str(folder)
    values["tfrecords"].value = None
    evaluate.main([])
    out = capsys.readouterr().out
    for name in ("a", "a2b"):
        assert f"note: {tmp_path / 'all' / name} holds 7 pictures, and 6 are of this evaluation. Empty" in out
    assert f"{tmp_path / 'all' / 'b'} holds" not in out


def test_nothing_to_evaluate(folder, tmp_path):
    translate = evaluate.make_translate(GENERATORS, PLAIN)
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluate.collect(translate, [], PLAIN, "a2b")
    assert preprocess.to_bytes(translate(tf.ones([1, 8, 8, 3]), "a2b")["translated"]).max() == 0
