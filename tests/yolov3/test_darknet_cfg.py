"""cfg files against those that Darknet ships; the anchors of weight files, and of the real published one."""

import hashlib

import cv2
import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from common import boxes, class_names, detection, detection_evaluate, detection_sources, records
from common.errors import UserError
from common.metrics import average_precision
from common.nms import nms
from tests.yolov3 import asked as command_line
from tests.yolov3 import darknet_oracle
from yolov3 import convert, darknet_cfg, evaluate, train
from yolov3.model import ANCHORS, MODELS, TINY_ANCHORS

PUBLISHED_TINY = [[[23, 27], [37, 58], [81, 82]], [[81, 82], [135, 169], [344, 319]]]


def tiny_cfg(path, masks=("3,4,5", "0,1,2"), anchors=darknet_oracle.TINY_ANCHORS, **net):
    """A cfg file of the tiny network; masks from the large stride to the small one."""
    layers = darknet_oracle.sections("tiny", 7)
    for mask, values in zip(masks, (values for name, values in layers if name == "yolo")):
        values.update(mask=mask, anchors=anchors)
    text = darknet_oracle.cfg_text(layers, 320, 320)
    for key, value in net.items():
        text = text.replace(f"{key}=320", f"{key}={value}", 1)
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["yolov3", "tiny", "spp"])
def test_what_is_written_is_darknet_s_own_and_is_read_back(name, tmp_path):
    model = MODELS[name](7, width=0.25)
    anchors = TINY_ANCHORS if name == "tiny" else ANCHORS
    path = tmp_path / "net.cfg"
    path.write_text(darknet_cfg.text(model, anchors, 320, 7))
    parsed = darknet_oracle.parse_cfg(path.read_text())[1:]
    expected = darknet_oracle.sections(name, 7, 0.25)
    assert [section for section, _ in parsed] == [section for section, _ in expected]
    for (section, found), (_, values) in zip(parsed, expected):
        for key, value in values.items():
            assert found[key] == str(value).replace(" ", ""), (section, key)
    cfg = darknet_cfg.read(path)
    assert (cfg.model, cfg.width, cfg.image_size, cfg.num_classes) == (name, 0.25, 320, 7)
    np.testing.assert_array_equal(cfg.anchors, anchors)


@pytest.mark.parametrize("name", ["yolov3", "tiny", "spp"])
def test_shipped_files_are_read(name):
    path = darknet_oracle.CFG / darknet_oracle.FILES[name]
    if not path.is_file():
        pytest.skip(f"{path} is missing: apt-get install darknet")
    cfg = darknet_cfg.read(path)
    assert (cfg.model, cfg.width, cfg.num_classes) == (name, 1.0, 80)
    np.testing.assert_array_equal(cfg.anchors, TINY_ANCHORS if name == "tiny" else ANCHORS)


def test_masks_choose_the_anchors(tmp_path):
    cfg = darknet_cfg.read(tiny_cfg(tmp_path / "a.cfg", masks=("3,4,5", "1,2,3")))
    assert cfg.anchors.tolist() == PUBLISHED_TINY and (cfg.model, cfg.num_classes, cfg.image_size) == ("tiny", 7, 320)


@pytest.mark.parametrize("change, words", [
    ({"masks": ("0,1,2", "3,4,5")}, "larger anchors at a larger stride, and has 81,82 135,169 344,319 before 10,14 23"),
    ({"masks": ("3,4,9", "0,1,2")}, "must have mask, anchors and classes"),
    ({"masks": ("3,4", "0,1,2")}, "the same number of anchors"),
    ({"anchors": "1,2,3"}, "must have mask, anchors and classes"),
    ({"width": "100"}, "a square input with a side that is a multiple of 32, and has .7. and 100 x 320"),
])
def test_wrong_files_are_one_line(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        darknet_cfg.read(tiny_cfg(tmp_path / "a.cfg", **change))


def test_anchors_of_a_scale_keep_their_order(tmp_path):
    """Sorted they would be those of other outputs: a file that was trained so is read so."""
    path = tiny_cfg(tmp_path / "a.cfg", masks=("4,3,5", "2,0,1"))
    assert darknet_cfg.read(path).anchors.tolist() == TINY_ANCHORS[[[0], [1]], [[2, 0, 1], [1, 0, 2]]].tolist()


def test_other_files_are_refused(tmp_path):
    (tmp_path / "b.cfg").write_text("[net]\nwidth=416\nheight=416\n[convolutional]\nfilters=8\n")
    (tmp_path / "c.cfg").write_bytes(b"\xff\xfe\x00")
    for name, words in (("b.cfg", "two or three .yolo. sections, and has 0"), ("c.cfg", "cannot be read"),
                        ("d.cfg", "No such file")):
        with pytest.raises(UserError, match=words):
            darknet_cfg.read(tmp_path / name)


def test_anchors_must_rise():
    darknet_cfg.require_rising(PUBLISHED_TINY)                             # 81,82 stands twice, as published
    darknet_cfg.require_rising(ANCHORS)
    with pytest.raises(UserError, match="--anchors must rise in area.* 10,13 comes behind 16,30"):
        convert.parse_anchors("16,30 10,13 33,23 30,61 62,45 59,119", "tiny")
    with pytest.raises(UserError, match="--anchors must have larger anchors at a larger stride"):
        train.make_config({"model": "tiny", "anchors": TINY_ANCHORS[::-1].tolist()}, {"labels": ["a"]})


def test_the_order_in_which_anchors_are_found(tmp_path, monkeypatch):
    weights, other = tmp_path / "known.weights", tmp_path / "other.weights"
    weights.write_bytes(b"known")
    other.write_bytes(b"other")
    digest = hashlib.sha256(b"known").hexdigest()
    monkeypatch.setattr(darknet_cfg, "PUBLISHED", {digest: (5, "known.weights", PUBLISHED_TINY)})
    asked, cfg = TINY_ANCHORS + 1, darknet_cfg.read(tiny_cfg(tmp_path / "a.cfg", masks=("3,4,5", "0,2,3")))

    def found(path, **options):
        anchors, source = darknet_cfg.find_anchors(path, "tiny", **options)
        assert source
        return np.asarray(anchors).tolist(), source

    anchors, source = found(weights, asked=asked, cfg=cfg)
    assert anchors == asked.tolist() and source.startswith("--anchors, though 23,27 37,58 81,82 81,82 135,169 344,319 ")
    assert found(weights, asked=PUBLISHED_TINY)[1] == found(other, asked=asked)[1] == "--anchors"
    assert found(weights, cfg=cfg)[0] == PUBLISHED_TINY                    # against its cfg
    assert "sha256" in found(weights)[1]
    assert found(other, cfg=cfg) == (cfg.anchors.tolist(), "--cfg")
    anchors, source = found(other)
    assert anchors == TINY_ANCHORS.tolist() and "defaults of tiny" in source


def test_training_starts_with_the_anchors_of_its_weights(tmp_path, capsys, monkeypatch):
    """Of another run (they were lost), of a file, of the command line; a run that goes on keeps its own."""
    (tmp_path / "run").mkdir()
    text = '{"article": "yolov3", "model": "tiny", "anchors": [[[20, 20]], [[80, 80]]]}'
    (tmp_path / "run" / "config.json").write_text(text)
    values = {**train.DEFAULTS, "model": "tiny", "weights": str(tmp_path / "run")}
    assert train.choose_anchors(values) == {"anchors": [[[20, 20]], [[80, 80]]]}
    assert f"anchors: 20,20 80,80 (of {tmp_path / 'run'})" in capsys.readouterr().err
    assert train.choose_anchors({**values, "transfer": "backbone"}) == {}
    assert train.choose_anchors({**values, "anchors": "30,30 90,90"}) == {"anchors": [[[30, 30]], [[90, 90]]]}
    assert "20,20 80,80" in capsys.readouterr().err
    assert train.choose_anchors(values, kept=PUBLISHED_TINY) == {"anchors": PUBLISHED_TINY}
    with pytest.raises(UserError, match="must be a run of --model yolov3, to start from it .* is one of tiny"):
        train.choose_anchors({**values, "model": "yolov3"})
    (tmp_path / "run" / "config.json").write_text('{"article": "ssd", "model": "tiny"}')
    with pytest.raises(UserError, match="must be a run of yolov3, and its config.json is of 'ssd'"):
        train.choose_anchors(values)
    monkeypatch.setattr(darknet_cfg, "_published", lambda weights: (PUBLISHED_TINY, "published"))
    cfg, weights = str(tiny_cfg(tmp_path / "a.cfg")), tmp_path / "x.weights"
    weights.write_bytes(convert.Header().pack() + bytes(4 * (8_673_934 + 80 * 2_310)))
    values["weights"] = str(weights)
    assert train.choose_anchors(values) == {"anchors": PUBLISHED_TINY}
    for words, options in (("--cfg is of tiny, and --model is spp", {"model": "spp", "cfg": cfg}),
                           ("is of tiny with 7 classes. It is as long as tiny with 80 classes", {"cfg": cfg}),
                           ("must be of spp, to start from it with its anchors, and is published", {"model": "spp"}),
                           ("has its own anchors. Leave --cfg out", {"weights": str(tmp_path / "run"), "cfg": cfg}),
                           ("there is none", {"weights": str(tmp_path / "nothing.weights")})):
        with pytest.raises(UserError, match=words):
            train.choose_anchors({**values, **options})


def test_the_command_line_and_the_anchors_of_weights(tmp_path, monkeypatch):
    """The demo's own anchors do not stand before those of the weights; a run of another network is called that."""
    with records.RecordWriter(tmp_path / "set", kind="detection", labels=["a", "b"]) as writer:
        picture = tf.io.encode_png(np.zeros([8, 8, 3], np.uint8)).numpy()
        for split in ("train", "val"):
            writer.write_split(split, [detection.encode_example(picture, 8, 8, "a.png", np.zeros([0, 4]), [])])
        writer.publish()
    (tmp_path / "run").mkdir()
    text = '{"article": "yolov3", "model": "tiny", "anchors": [[[20, 20]], [[80, 80]]]}'
    (tmp_path / "run" / "config.json").write_text(text)
    monkeypatch.setattr(train.preprocess, "ensure_records", lambda name: tmp_path / "set")

    def anchors(*words):
        return command_line.configuration(words, monkeypatch, tmp_path)["anchors"]

    assert anchors("--demo", "--weights", "run") == [[[20, 20]], [[80, 80]]]
    assert anchors("--demo", "--weights", "run", "--transfer", "backbone") == train.DEMO["anchors"]
    assert anchors("--tfrecords", "set", "--run", "run", "--model", "tiny") == [[[20, 20]], [[80, 80]]]
    assert anchors("--tfrecords", "set", "--run", "run") == ANCHORS.tolist()   # open_run says what the run is of
    with pytest.raises(flags.IllegalFlagValueError, match="seed=4294967296"):  # Keras has 32 bits: a traceback
        anchors("--demo", "--seed", "4294967296")
    with pytest.raises(UserError, match="more than its backbone .--transfer.. Leave --cfg out"):
        anchors("--demo", "--weights", "run", "--transfer", "backbone", "--cfg", "a.cfg")


def test_names_are_compared_by_what_they_mean():
    class_names.require_same(["motorbike", "TV", "sofa"], ["motorcycle", "tvmonitor", "couch"], "run", "set")
    with pytest.raises(UserError, match="run lacks b, B"):                      # letters are not the same in two cases
        class_names.require_same(["a", "A"], ["b", "B"], "run", "set")
    with pytest.raises(UserError, match="another order: class 0 is 'a' and 'A'"):
        class_names.require_same(["a", "A"], ["A", "a"], "run", "set")
    with pytest.raises(UserError, match="run lacks couch. "):
        class_names.require_same(["sofa"], ["sofa", "couch"], "run", "set")
    with pytest.raises(UserError, match="run has 2 and set 1, some of them twice"):
        class_names.require_same(["sofa", "sofa"], ["sofa"], "run", "set")
    with pytest.raises(UserError, match="run lacks dog, and set lacks horse"):
        class_names.require_same(["cat", "horse"], ["cat", "dog"], "run", "set")
    with pytest.raises(UserError, match="another order: class 0 is 'cat' and 'dog'"):
        class_names.require_same(["cat", "dog"], ["dog", "cat"], "run", "set")


def opencv_detections(weights, folder, pictures, size, tmp_path):
    """(boxes_xyxy [N, 4] fractions of the letterbox, scores [N, C]) of each picture, with mask 1,2,3 at stride 16."""
    text = (folder / "yolov3-tiny.cfg").read_text().replace("mask = 0,1,2", "mask = 1,2,3")
    (tmp_path / "net.cfg").write_text(text.replace("[yolo]", "[yolo]\nthresh=0.001"))
    net = cv2.dnn.readNetFromDarknet(str(tmp_path / "net.cfg"), str(weights))
    for picture in pictures:
        net.setInput(cv2.dnn.blobFromImage(picture, 1.0, (size, size)))
        rows = np.concatenate(net.forward(net.getUnconnectedOutLayersNames()))
        yield boxes.to_xyxy(rows[:, :4]).numpy(), rows[:, 5:]


def test_the_published_tiny_weights(real_data, tmp_path, capsys):
    """Average precision on 48 photographs of COCO, equal to OpenCV's with the mask they were trained with. On all
    128 (see the card) it is .454 and .451 at IoU .5; the anchors of the cfg that its authors ship give .294."""
    if not hasattr(cv2.dnn, "readNetFromDarknet"):
        pytest.skip("OpenCV reads Darknet's files up to 4.14 only")
    folder, size = real_data("weights"), 416
    weights = folder / "yolov3-tiny.weights"
    labels = (folder / "coco.names").read_text().split("\n")[:80]
    model, config = convert.from_darknet(weights, labels, cfg=folder / "yolov3-tiny.cfg")
    assert config["anchors"] == PUBLISHED_TINY and config["image_size"] == size
    assert "mask 1,2,3" in capsys.readouterr().err
    source = detection_sources.find("coco", real_data("coco2017_128"))
    records_folder = detection.build_records(source, tmp_path, progress=False).folder
    class_names.require_same(labels, source.labels, "weights", "set")      # six names are spelt otherwise
    strategy = tf.distribute.get_strategy()
    detect = evaluate.make_detect(model, strategy, anchors=np.float32(config["anchors"]), image_size=size)
    batches = evaluate.batches(records_folder, "val", strategy, image_size=size, batch_size=16, limit=48)
    detections, truths, *_ = detection_evaluate.collect(detect, batches, strategy)
    ours = average_precision.coco(detections, truths, 80)

    pictures, geometry = [], []
    for batch in batches:
        pictures += list(batch["images"].numpy())
        geometry += list(zip(batch["height"].numpy(), batch["width"].numpy(), batch["index"].numpy()))
    rows = []
    for (height, width, index), (boxes_xyxy, scores) in zip(
            geometry, opencv_detections(weights, folder, pictures, size, tmp_path)):
        if index >= 0:
            kept = nms(boxes_xyxy[None], scores[None], score_threshold=0.001, iou_threshold=0.45, max_detections=300)
            count = int(kept["num"][0])
            placed = boxes.unletterbox_boxes(kept["boxes"], [height], [width], size).numpy()[0, :count]
            rows.append((np.full(count, index), kept["classes"].numpy()[0, :count], kept["scores"].numpy()[0, :count],
                          placed))
    theirs = average_precision.coco(average_precision.Detections(*map(np.concatenate, zip(*rows))), truths, 80)
    assert len(np.unique(detections.image)) == 48 and theirs["AP50"] == pytest.approx(0.455, abs=0.002)
    for name in ("AP", "AP50", "AP75"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-3), name   # ranks of scores that all but agree
