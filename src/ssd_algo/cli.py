"""`ssd-algo`: the image's work for people at a terminal."""

import sys
from pathlib import Path

import click

from ssd_algo import __version__


@click.group()
@click.version_option(__version__)
def main() -> None:
    """Train and serve SSD object detectors, as SageMaker's built-in Object Detection algorithm does."""


@main.command()
def demo() -> None:
    """Draw a small dataset, train on it, serve the model and make a picture of what it finds."""
    from ssd_algo import demo

    beside = Path(sys.executable).parent  # where the package is installed, so are its two scripts
    demo.run([str(beside / "train")], [str(beside / "serve")], click.echo)
