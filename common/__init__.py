"""What several articles need: boxes, suppression, records, training plumbing, metrics, export, drawing.

Importing it loads TensorFlow without the notes on its build that it prints before anything can silence it; warnings
and errors of the start still come through. Where ZOO_LAZY_TENSORFLOW is set, as in the processes of common.workers,
TensorFlow is left to the modules that import it themselves.
"""

import os
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def _load_tensorflow():
    with tempfile.TemporaryFile() as notes:
        stderr = os.dup(2)
        sys.stderr.flush()
        os.dup2(notes.fileno(), 2)
        try:
            import tensorflow

            tensorflow.config.list_physical_devices()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            notes.seek(0)
            for line in notes.read().decode(errors="replace").splitlines():
                # Without a GPU driver CUDA reports error 303 (cuInit); that is no mistake.
                if line[:5] in ("W0000", "E0000", "F0000") and "cuInit" not in line:
                    print(line, file=sys.stderr)


if "tensorflow" not in sys.modules and not os.environ.get("ZOO_LAZY_TENSORFLOW"):
    _load_tensorflow()
