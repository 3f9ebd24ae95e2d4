# One file, two variants:
#   docker build .                                                      GPU: mxnet-cu112 and its CUDA libraries
#   docker build --build-arg PROCESSOR=cpu --build-arg PRETRAINED=0 .   CPU: mxnet
FROM python:3.11-slim-bookworm

# gpu or cpu: which lock file of docker/ is installed.
ARG PROCESSOR=gpu
# 1: ImageNet weights belong into the image, which cannot hold any yet.
ARG PRETRAINED=0

RUN apt-get update \
 && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 libgomp1 libquadmath0 \
 && rm -rf /var/lib/apt/lists/*

COPY docker/requirements-${PROCESSOR}.txt /tmp/requirements.txt
RUN pip install --no-cache-dir --no-compile --require-hashes -r /tmp/requirements.txt && rm /tmp/requirements.txt

RUN test "$PRETRAINED" = 0 || { echo "PRETRAINED=$PRETRAINED: this version has no ImageNet weights; build with PRETRAINED=0." >&2; exit 1; }

COPY pyproject.toml README.md /tmp/ssd-algo/
COPY scripts /tmp/ssd-algo/scripts
COPY src /tmp/ssd-algo/src
RUN pip install --no-cache-dir --no-compile --no-deps --no-build-isolation /tmp/ssd-algo && rm -r /tmp/ssd-algo

# Nothing is written beside the code, and log lines leave at once.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

# The server listens where SAGEMAKER_BIND_TO_PORT says, 8080 otherwise.
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true
EXPOSE 8080

# env runs the word given to `docker run` from the PATH, in its own place: `train` and `serve` get the signals.
ENTRYPOINT ["/usr/bin/env"]
CMD ["ssd-algo", "--help"]
