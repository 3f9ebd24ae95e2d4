# One file, two variants:
#   docker build .                                                      GPU: mxnet-cu112 and its CUDA libraries
#   docker build --build-arg PROCESSOR=cpu --build-arg PRETRAINED=0 .   CPU: mxnet
# gpu or cpu: which lock file of docker/ is installed.
ARG PROCESSOR=gpu

# What MXNet's CUDA build needs on a machine without a driver (contract/gpus.py); the compiler stays in this stage.
FROM python:3.11-slim-bookworm AS driver-gpu
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev
COPY docker/libcuda_stub.c /tmp/
RUN mkdir /driver && gcc -shared -fPIC -Wl,-soname,libcuda.so.1 -o /driver/libcuda-stub.so /tmp/libcuda_stub.c

FROM python:3.11-slim-bookworm AS driver-cpu
RUN mkdir /driver

FROM driver-${PROCESSOR} AS driver

FROM python:3.11-slim-bookworm
ARG PROCESSOR

# What MXNet is linked with, and a library of OpenGL that OpenCV's package wants to be there: as nothing draws with it, its
# drivers and their compiler go.
RUN apt-get update \
 && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 libgomp1 libquadmath0 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /usr/lib/x86_64-linux-gnu/dri /usr/lib/x86_64-linux-gnu/libLLVM*

COPY docker/requirements-${PROCESSOR}.txt /tmp/requirements.txt
# The lock is complete: --no-deps adds nothing to it. OpenVINO runs on the CPU here; of ONNX no test data is needed,
# and no windows of OpenCV.
RUN pip install --no-cache-dir --no-compile --require-hashes --no-deps -r /tmp/requirements.txt \
 && rm /tmp/requirements.txt \
 && cd /usr/local/lib/python3.11/site-packages \
 && rm -r openvino/libs/libopenvino_intel_[gn]pu_plugin.so openvino/libs/cache.json onnx/backend/test/data cv2/qt
# The CUDA libraries are Python packages; the loader's cache finds them there.
RUN find /usr/local/lib/python3.11/site-packages -path "*/nvidia/*/lib" -type d > /etc/ld.so.conf.d/nvidia-packages.conf && ldconfig

COPY --from=driver /driver/ /opt/ssd-algo/
COPY pyproject.toml README.md /tmp/ssd-algo/
COPY scripts /tmp/ssd-algo/scripts
COPY src /tmp/ssd-algo/src
RUN pip install --no-cache-dir --no-compile --no-deps --no-build-isolation /tmp/ssd-algo && rm -r /tmp/ssd-algo

# 1: ImageNet weights of all backbones, from GluonCV's model zoo, whose checksums are verified. 0: none.
ARG PRETRAINED=1
RUN case "$PRETRAINED" in \
      1) ssd-algo fetch-weights /opt/ssd-algo/pretrained ;; \
      0) ;; \
      *) echo "PRETRAINED is $PRETRAINED; it must be 1 or 0." >&2; exit 1 ;; \
    esac

# Where platforms mount the driver beside the places that the loader knows, and what they look at to give GPUs at all.
ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Nothing is written beside the code, and log lines leave at once.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

# The server listens where SAGEMAKER_BIND_TO_PORT says, 8080 otherwise.
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true
EXPOSE 8080

# env runs the word given to `docker run` from the PATH, in its own place: `train` and `serve` get the signals.
ENTRYPOINT ["/usr/bin/env"]
CMD ["ssd-algo", "--help"]
