"""Two logical CPU devices and the one MirroredStrategy of the process, before TensorFlow starts its runtime."""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).resolve().parents[1]

_cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(_cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.fixture(scope="session")
def two_replicas():
    """MirroredStrategy over two logical CPUs; a second strategy in one process fails, so all tests share this one."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def real_data():
    """Returns a function from a name to a folder of real data, skipping the test where it is missing."""
    root = pathlib.Path(os.environ.get("ZOO_DATA", ROOT.parent / "shared" / "data"))

    def folder(name):
        if not (root / name).is_dir():
            pytest.skip(f"real data {name} is not at {root}; set ZOO_DATA to the folder that holds it")
        return root / name

    return folder
