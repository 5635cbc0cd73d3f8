# syntax=docker/dockerfile:1
# The farm's container image:
#
#     docker build --target cpu  --tag dreambooth-farm:cpu .
#     docker build --target cuda --tag dreambooth-farm:cuda .
#
# cluster.yaml and deploy/kuberay use the target cuda. constraints.txt pins every version, so that
# the image holds what the tests used. torch's CUDA build brings its own CUDA libraries; the node
# provides the driver, through the NVIDIA container toolkit.

ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim-bookworm AS wheel
WORKDIR /source
RUN pip install --no-cache-dir build==1.6.1
COPY pyproject.toml README.md LICENSE ./
COPY farm ./farm
RUN python -m build --wheel --outdir /wheels

FROM python:${PYTHON_VERSION}-slim-bookworm AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# g++ for torch.compile; ps and rsync for ray up; wget for KubeRay's probes. The profile is for
# login shells, which ray up uses: they reset PATH
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ procps rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir uv==0.13.9 \
    && useradd --create-home --uid 1000 --shell /bin/bash ray \
    && echo 'export PATH=/opt/farm/bin:$PATH' > /etc/profile.d/farm.sh \
    && python -m venv /opt/farm \
    && chown -R ray:ray /opt/farm
ENV PATH=/opt/farm/bin:$PATH \
    VIRTUAL_ENV=/opt/farm \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0
USER ray
WORKDIR /home/ray
COPY --chown=ray:ray constraints.txt /opt/farm/constraints.txt

FROM base AS cpu
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    wheel=(/wheels/*.whl) \
    && uv pip install --no-cache --torch-backend cpu \
        --constraint /opt/farm/constraints.txt "${wheel[0]}[s3,gcs]"
CMD ["farm", "--help"]

FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    wheel=(/wheels/*.whl) \
    && uv pip install --no-cache \
        --constraint /opt/farm/constraints.txt "${wheel[0]}[s3,gcs]"
CMD ["farm", "--help"]
