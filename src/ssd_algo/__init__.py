"""ssd-algo: an open container image that does the job of SageMaker's built-in Object Detection algorithm."""

__version__ = "0.1.0"
