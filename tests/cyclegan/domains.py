"""Small record sets of two domains for the tests."""

import cv2
import numpy as np

from cyclegan import preprocess


def write_records(root, pictures):
    """Records from {split: uint8 [N, H, W, 3]}; returns their folder."""
    for split, images in pictures.items():
        (root / "source" / split).mkdir(parents=True)
        for i, image in enumerate(images):
            cv2.imwrite(str(root / "source" / split / f"{i:03d}.png"), np.ascontiguousarray(image[..., ::-1]))
    return preprocess.build("cat2dog", root / "source", root / "records")
