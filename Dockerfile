# What a pod or serverless worker runs: the locked dependencies and the package of this folder.
#
#     docker build --platform linux/amd64 --tag <registry>/trade-pipeline:<commit> .
#     docker push <registry>/trade-pipeline:<commit>
#
# `image` in configs/compute/runpod.yaml takes the digest that the push prints:
# <registry>/trade-pipeline@sha256:<64 hex digits>.
FROM python:3.11.13-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore

WORKDIR /opt/trade_pipeline

# The dependencies first, beside an empty package: they change seldom and are gigabytes. torch as
# the index has it for Linux brings the CUDA libraries that it was built with; the pod's driver has
# to know that CUDA version, see `cuda` in configs/compute/runpod.yaml.
COPY constraints.txt pyproject.toml README.md ./
RUN python -m pip install --constraint constraints.txt pip setuptools \
    && python -m pip install --constraint constraints.txt torch==2.13.0 \
    && mkdir trade_pipeline \
    && touch trade_pipeline/__init__.py \
    && python -m pip install --constraint constraints.txt .

COPY trade_pipeline ./trade_pipeline
RUN python -m pip install --constraint constraints.txt --no-deps --force-reinstall . \
    && python -m compileall -q /usr/local/lib/python3.11/site-packages/trade_pipeline

WORKDIR /
# RunPod replaces the command and can replace no entry point. A pod gets its command from the host;
# a serverless endpoint sets `python -m trade_pipeline.compute.runpod.serverless`.
ENTRYPOINT []
CMD ["python", "-m", "trade_pipeline.compute.runpod.supervisor", "--help"]
