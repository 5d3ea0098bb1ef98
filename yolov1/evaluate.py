"""How well a run detects: VOC07, VOC10 and COCO average precision, per class, with precision-recall curves.

    python -m yolov1.evaluate --run runs/yolov1/demo [--split test]
"""

import tensorflow as tf

from common import boxes, cli, detection_evaluate, training
from yolov1 import predict, preprocess
from yolov1.postprocess import postprocess

SCORE_THRESHOLD = 0.001  # low: average precision ranks all detections
IOU_THRESHOLD = 0.45
MAX_DETECTIONS = 300     # of a picture, or as many as one has objects


def make_detect(model, strategy, *, num_classes, num_boxes, max_detections=MAX_DETECTIONS):
    """Returns the `@tf.function` (images, height, width) -> detections in pixels of the pictures.

    max_detections: of `detection_evaluate.most_detections`.
    """
    @tf.function
    def detect(images, height, width):
        def replica(images, height, width):
            found = postprocess(model(images, training=False), num_classes, num_boxes,
                                score_threshold=SCORE_THRESHOLD, iou_threshold=IOU_THRESHOLD,
                                max_detections=max_detections)
            found["boxes"] = boxes.unwarp_boxes(found["boxes"], height, width, images.shape[1])
            return found

        return strategy.run(replica, args=(images, height, width))

    return detect


def batches(folder, split, strategy, *, image_size, batch_size, limit=0):
    """The evaluation dataset of a split, distributed over the replicas; batch_size is the global one."""
    return detection_evaluate.distribute(preprocess.evaluation_dataset, folder, split, strategy,
                                         image_size=image_size, batch_size=batch_size, limit=limit)


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    strategy = training.make_strategy()
    with strategy.scope():
        model, config = predict.load_run(flags.run, flags.which)
    folder, split, limit = detection_evaluate.choose_records(flags, config, preprocess.command)
    detect = make_detect(model, strategy, num_classes=len(config["labels"]), num_boxes=config["num_boxes"],
                         max_detections=detection_evaluate.most_detections(folder, split, MAX_DETECTIONS))
    dataset = batches(folder, split, strategy, image_size=config["image_size"], batch_size=flags.batch_size,
                      limit=limit)
    found = detection_evaluate.collect(detect, dataset, strategy)
    detection_evaluate.report(flags, split, found, config["labels"])


if __name__ == "__main__":
    cli.run(main, detection_evaluate.define_flags)
