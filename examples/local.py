"""What the notebooks share: the log's expressions, and what stands in for the platform where they run without it."""

import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# A platform that runs an image of your own takes no value out of its log unless it is told how.
METRIC_DEFINITIONS = [
    {"Name": "train:progress", "Regex": r"#progress_metric: host=\S+, completed (\S+) %"},
    {
        "Name": "train:smooth_l1",
        "Regex": r"#quality_metric: host=\S+, epoch=\S+, batch=\S+ train smooth_l1 <loss>=\((\S+)\)",
    },
    {
        "Name": "train:cross_entropy",
        "Regex": r"#quality_metric: host=\S+, epoch=\S+, batch=\S+ train cross_entropy <loss>=\((\S+)\)",
    },
    {"Name": "train:throughput", "Regex": r"#throughput_metric: host=\S+, train throughput=(\S+) records/second"},
    {"Name": "validation:mAP", "Regex": r"#quality_metric: host=\S+, epoch=\S+, validation mAP <score>=\((\S+)\)"},
]

ROLE = "arn:aws:iam::000000000000:role/local"  # local mode asks nobody for it

_DRAW = """
import sys, numpy
from pathlib import Path
from ssd_algo import demo
demo.write_channels(Path("/data"), int(sys.argv[1]), int(sys.argv[2]), numpy.random.default_rng(0))
"""


class KeptLog(io.StringIO):
    """For `contextlib.redirect_stdout`: what is printed is shown as it comes, and kept."""

    def __init__(self) -> None:
        super().__init__()
        self._shown = sys.stdout

    def write(self, text: str) -> int:
        self._shown.write(text)
        return super().write(text)


def session(folder: Path, port: int = 8080) -> Any:
    """SageMaker's local mode without an account: jobs are containers on this machine, their files lie below `folder`.

    An endpoint listens at `port`.
    """
    import boto3  # docker_run.ipynb does without the SDK
    from sagemaker.local import LocalSession

    boto = boto3.Session(aws_access_key_id="local", aws_secret_access_key="local", region_name="us-east-1")
    # Without this the SDK tells its makers of every call.
    defaults = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}
    local = LocalSession(boto, sagemaker_config=defaults)
    for chatty in ("sagemaker", "sagemaker.config", "urllib3.connectionpool"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    jobs = folder / "jobs"
    jobs.mkdir(parents=True, exist_ok=True)
    local.config = {"local": {"local_code": True, "container_root": str(jobs), "serving_port": port}}
    return local


def run_over(data: Path, image: str, *command: str) -> None:
    """Run a command in the image; it sees the folder as /data, and what it writes there is yours."""
    user = f"{os.getuid()}:{os.getgid()}"
    subprocess.run(["docker", "run", "--rm", "--user", user, "-v", f"{data}:/data", image, *command], check=True)


def draw_photos(data: Path, image: str, train: int, validation: int) -> None:
    """Photos of circles, squares and triangles with their annotations, as four channels below `data`."""
    data.mkdir(parents=True)
    run_over(data, image, "python", "-c", _DRAW, str(train), str(validation))


def draw_boxes(photo: Path, answer: dict[str, Any], threshold: float = 0.3) -> Any:
    """The photo with the detections above a score; `answer` is one with names (`;names=1` in `Accept`)."""
    from PIL import Image, ImageDraw

    picture = Image.open(photo).convert("RGB")
    picture = picture.resize((600, round(600 * picture.height / picture.width)))
    draw = ImageDraw.Draw(picture)
    for name, (_, score, *corners) in zip(answer["class_names"], answer["prediction"], strict=True):
        if score >= threshold:
            left, top, right, bottom = (each * side for each, side in zip(corners, picture.size * 2, strict=True))
            draw.rectangle((left, top, right, bottom), outline="red", width=2)
            draw.text((left + 4, top + 2), f"{name} {score:.2f}", fill="black")
    return picture


def containers(folder: Path) -> list[dict[str, Any]]:
    """What `docker inspect` says of the containers of jobs and endpoints below `folder`, running or not."""
    label = "com.docker.compose.project.working_dir"
    listed = _docker("ps", "-aq", "--filter", f"label={label}").split()
    found = json.loads(_docker("inspect", *listed)) if listed else []
    return [one for one in found if Path(one["Config"]["Labels"][label]).is_relative_to(folder)]


def remove_containers(folder: Path) -> list[int]:
    """Remove what local mode leaves behind of jobs and endpoints below `folder`; their exit codes."""
    left = containers(folder)
    _docker("rm", "-f", "-v", *(one["Id"] for one in left))
    _docker("network", "rm", "sagemaker-local")  # which fails as long as others use it
    return [one["State"]["ExitCode"] for one in left]


def _docker(*arguments: str) -> str:
    """What a command of Docker prints; it may be about containers that are gone by then."""
    return subprocess.run(["docker", *arguments], capture_output=True, text=True).stdout
