"""What each megabyte of an image is for, as a Markdown table.

python docker/sizes.py IMAGE
"""

import json
import subprocess
import sys

LEAST = 5  # MB of a package to have a row of its own

PURPOSES = {
    "base system": "Debian with what Python, MXNet and OpenCV are linked with",
    "Python": "interpreter, standard library, pip, setuptools",
    "ssd-algo": "this project",
    "pretrained weights": "ImageNet weights of all backbones, with PRETRAINED=1",
    "mxnet": "training",
    "mxnet-cu112": "training, and serving on GPUs",
    "openvino": "serving on CPUs, scoring of the networks for serving",
    "scipy": "imported by MXNet and GluonCV",
    "opencv-python": "decoding, resizing, augmentation, drawing",
    "numpy": "arrays everywhere",
    "botocore": "`ssd-algo check` on s3:// addresses, `ssd-algo request --send`",
    "ml-dtypes": "imported by onnx",
    "pillow": "headers of images",
    "fonttools": "imported by matplotlib",
    "kiwisolver": "imported by matplotlib",
    "matplotlib": "the charts of the report",
    "onnx": "writes the network for serving",
    "gluoncv": "backbones",
    "pydantic-core": "hyperparameters, parsed",
    "nvidia-cudnn-cu11": "convolutions",
    "nvidia-cublas-cu11": "matrix products",
    "nvidia-cusolver-cu11": "linked by MXNet",
    "nvidia-cufft-cu11": "linked by MXNet",
    "nvidia-cusparse-cu11": "linked by MXNet",
    "nvidia-nccl-cu11": "gradients between GPUs",
    "nvidia-curand-cu11": "random numbers",
    "nvidia-cuda-nvrtc-cu11": "kernels that MXNet fuses",
    "nvidia-cuda-runtime-cu11": "the runtime of CUDA",
}

# Prints bytes by part; files that a package's list has but the image has not do not count.
IN_THE_IMAGE = """
import json, os, sysconfig
from importlib.metadata import distributions
from pathlib import Path

VIRTUAL = "proc", "sys", "dev"

def size(*folders):
    return sum(
        os.lstat(os.path.join(folder, name)).st_size
        for top in folders for folder, _, names in os.walk(top) for name in names
    )

def name(package):
    return package.metadata["Name"].lower().replace("_", "-")

def size_of(package):
    paths = (Path(package.locate_file(each)) for each in package.files or [])
    return sum(path.stat().st_size for path in paths if path.is_file())

of_python = {"pip", "setuptools", "wheel"}
parts = {name(each): size_of(each) for each in distributions(path=[sysconfig.get_path("purelib")])}
parts = {each: bytes for each, bytes in parts.items() if each not in of_python}
tops = [each for each in os.scandir("/") if each.is_dir(follow_symlinks=False) and each.name not in VIRTUAL]
everything = size(*tops)
parts["Python"] = size("/usr/local") - sum(parts.values())
parts["pretrained weights"] = size("/opt/ssd-algo")
parts["base system"] = everything - sum(parts.values())
print(json.dumps(parts))
"""


def main(image: str) -> None:
    command = ["docker", "run", "--rm", "--network", "none", image, "python", "-c", IN_THE_IMAGE]
    parts = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    megabytes = {name: size / 1e6 for name, size in parts.items()}
    large = {name: size for name, size in megabytes.items() if size >= LEAST or (name in PURPOSES and size >= 0.1)}
    print("| part | MB | what for |\n| --- | --- | --- |")
    for name, size in sorted(large.items(), key=lambda each: -each[1]):
        print(f"| {name} | {size:.0f} | {PURPOSES.get(name, '')} |")
    rest = sum(megabytes.values()) - sum(large.values())
    print(f"| {len(megabytes) - len(large)} smaller packages | {rest:.0f} | |")
    print(f"| all | {sum(megabytes.values()):.0f} | |")


if __name__ == "__main__":
    main(sys.argv[1])
