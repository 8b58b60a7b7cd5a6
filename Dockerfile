# Two images from one file: `--target operator` (no torch) and `--target runner` (the training stack).
#
# Version, revision and date come as `--label` (make images): buildah 1.28 takes a LABEL from its cache by its text,
# whatever the build arguments in it are.
#
# BASE is a Debian-like image with python3 (3.11 or newer), python3-venv and ca-certificates. Every stage uses the same
# one, because a virtual environment points at the interpreter it was made with.
ARG BASE=python:3.12-slim-bookworm

# What both images are at run time. 65532 needs no entry in /etc/passwd (libraries that ask for a name find USER), and the root file system may be read-only:
# the only folder that is written to is /tmp (and what a pod mounts).
FROM ${BASE} AS runtime
ENV PATH=/opt/code/bin:/opt/finetune/bin:${PATH} \
    PYTHONPATH=/opt/code PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
WORKDIR /tmp

# Dependencies: a layer of their own, made by one RUN from a hashed lock. What installs them (pip, then uv) is gone
# when the RUN ends, so it is in no layer. Bytecode is compiled here, because nothing can be written later, and is not
# compared with the sources' times, because builders rewrite those.
FROM runtime AS operator-dependencies
COPY requirements/bootstrap.lock requirements/operator.lock requirements/install-in-image.sh /opt/locks/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=uv.toml,target=/etc/uv/uv.toml \
    sh /opt/locks/install-in-image.sh operator

FROM runtime AS runner-dependencies
COPY requirements/bootstrap.lock requirements/runner.lock requirements/install-in-image.sh requirements/unused.py \
    /opt/locks/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=uv.toml,target=/etc/uv/uv.toml \
    sh /opt/locks/install-in-image.sh runner

# Triton builds a C module when it starts, and torch.compile writes C++ for what stays on the CPU.
FROM runtime AS compiler
RUN apt-get update -qq \
    && apt-get install -qq -y --no-install-recommends g++ \
        $(test -e "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" || echo python3-dev) \
    && rm -rf /var/lib/apt/lists/*

# The runner with what torch.compile needs (`--target runner-compile`). Nothing is removed: it compiles with the headers.
FROM compiler AS runner-compile-dependencies
COPY requirements/bootstrap.lock requirements/runner.lock requirements/triton.lock requirements/install-in-image.sh \
    /opt/locks/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=uv.toml,target=/etc/uv/uv.toml \
    sh /opt/locks/install-in-image.sh runner triton

# The runner with vLLM (`--target runner-vllm`), whose kernels are Triton's.
FROM compiler AS runner-vllm-dependencies
COPY requirements/bootstrap.lock requirements/runner-vllm.lock requirements/install-in-image.sh /opt/locks/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=uv.toml,target=/etc/uv/uv.toml \
    sh /opt/locks/install-in-image.sh runner-vllm

# The project's code, installed apart from what it depends on, and per image: editing the operator leaves the runner's
# image untouched, and the reverse. The empty environment stands where the real one will be, for the scripts' first line.
FROM ${BASE} AS builder
COPY requirements/bootstrap.lock /locks/
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python3 -m venv /builder \
    && /builder/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check \
        --require-hashes --only-binary :all: -r /locks/bootstrap.lock \
    && /builder/bin/uv venv --quiet --no-project --python "$(command -v python3)" /opt/finetune
COPY pyproject.toml README.md LICENSE requirements/code-in-image.sh /src/
COPY crds /src/crds

FROM builder AS operator-code
COPY operator /src/operator
RUN sh /src/code-in-image.sh finetune-operator

FROM builder AS runner-code
COPY runner /src/runner
RUN sh /src/code-in-image.sh finetune-runner

FROM runner-dependencies AS runner
ENV HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false USER=finetune
COPY --from=runner-code /opt/code /opt/code
USER 65532:65532
ENTRYPOINT ["finetune-runner"]
LABEL org.opencontainers.image.title="finetune-runner" \
    org.opencontainers.image.description="Runs one stage of a FineTuneJob" \
    org.opencontainers.image.licenses="Apache-2.0"

FROM runner-compile-dependencies AS runner-compile
ENV HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false USER=finetune
COPY --from=runner-code /opt/code /opt/code
USER 65532:65532
ENTRYPOINT ["finetune-runner"]
LABEL org.opencontainers.image.title="finetune-runner-compile" \
    org.opencontainers.image.description="Runs one stage of a FineTuneJob, with what torch.compile needs" \
    org.opencontainers.image.licenses="Apache-2.0"

FROM runner-vllm-dependencies AS runner-vllm
ENV HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false USER=finetune VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1
COPY --from=runner-code /opt/code /opt/code
USER 65532:65532
ENTRYPOINT ["finetune-runner"]
LABEL org.opencontainers.image.title="finetune-runner-vllm" \
    org.opencontainers.image.description="Runs one stage of a FineTuneJob, with vLLM as an engine of its evaluation" \
    org.opencontainers.image.licenses="Apache-2.0"

# Last, and so what a build without --target makes.
FROM operator-dependencies AS operator
ENV USER=finetune
COPY --from=operator-code /opt/code /opt/code
USER 65532:65532
ENTRYPOINT ["finetune-operator"]
LABEL org.opencontainers.image.title="finetune-operator" \
    org.opencontainers.image.description="Kubernetes operator that fine-tunes, evaluates and releases LoRA adapters" \
    org.opencontainers.image.licenses="Apache-2.0"
