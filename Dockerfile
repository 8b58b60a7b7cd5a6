# Two images from one file: `--target operator` (no torch) and `--target runner` (the training stack).
# BASE is any Debian-like image with python3 (3.11 or newer), python3-venv and ca-certificates; both stages use the same
# one, because a virtual environment points at the interpreter it was made with.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS installer
ENV UV_SYSTEM_CERTS=1 UV_NO_CACHE=1 UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 UV_PYTHON_DOWNLOADS=never \
    PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY requirements/bootstrap.lock requirements/
RUN python3 -m venv /opt/installer \
    && /opt/installer/bin/python -m pip install --quiet --require-hashes --only-binary :all: -r requirements/bootstrap.lock
ENV PATH=/opt/installer/bin:${PATH}

FROM installer AS operator-dependencies
COPY requirements/operator.lock requirements/
RUN uv venv --quiet --python "$(command -v python3)" --no-project /opt/finetune \
    && uv pip sync --quiet --python /opt/finetune/bin/python --require-hashes --build-constraints requirements/bootstrap.lock \
        requirements/operator.lock

FROM installer AS runner-dependencies
COPY requirements/runner.lock requirements/
RUN uv venv --quiet --python "$(command -v python3)" --no-project /opt/finetune \
    && uv pip sync --quiet --python /opt/finetune/bin/python --require-hashes --build-constraints requirements/bootstrap.lock \
        requirements/runner.lock

FROM installer AS wheel
COPY pyproject.toml README.md LICENSE ./
COPY crds crds
COPY operator operator
COPY runner runner
COPY cli cli
RUN python -m hatchling build --target wheel --directory /wheels

# The project's own code, apart from what it depends on: a change of code is a layer of less than two megabytes.
FROM operator-dependencies AS operator-code
COPY --from=wheel /wheels /wheels
RUN uv pip install --quiet --python /opt/finetune/bin/python --no-deps --target /opt/code /wheels/*.whl

FROM runner-dependencies AS runner-code
COPY --from=wheel /wheels /wheels
RUN uv pip install --quiet --python /opt/finetune/bin/python --no-deps --target /opt/code /wheels/*.whl

FROM ${BASE} AS runtime
ENV PATH=/opt/code/bin:/opt/finetune/bin:${PATH} \
    PYTHONPATH=/opt/code PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
LABEL org.opencontainers.image.title="finetune-operator" org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /tmp
USER 65532:65532

FROM runtime AS runner
ENV HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
COPY --from=runner-dependencies /opt/finetune /opt/finetune
COPY --from=runner-code /opt/code /opt/code
ENTRYPOINT ["finetune-runner"]

# Last, and so what a build without --target makes.
FROM runtime AS operator
COPY --from=operator-dependencies /opt/finetune /opt/finetune
COPY --from=operator-code /opt/code /opt/code
ENTRYPOINT ["finetune-operator"]
