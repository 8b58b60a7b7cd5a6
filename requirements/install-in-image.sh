#!/bin/sh
# Install locks into /opt/finetune; runs in the build of an image (Dockerfile): install-in-image.sh operator | runner |
# runner-vllm | runner triton
set -eu
export UV_SYSTEM_CERTS=1 UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never UV_COMPILE_BYTECODE=1 PYC_INVALIDATION_MODE=UNCHECKED_HASH
tools=$(mktemp -d)
python3 -m venv "$tools"
"$tools/bin/python" -m pip install --quiet --no-cache-dir --disable-pip-version-check --require-hashes \
  --only-binary :all: -r /opt/locks/bootstrap.lock
"$tools/bin/uv" venv --quiet --no-project --python "$(command -v python3)" /opt/finetune
"$tools/bin/uv" pip sync --quiet --python /opt/finetune/bin/python --require-hashes \
  --build-constraints /opt/locks/bootstrap.lock $(printf '/opt/locks/%s.lock ' "$@")
rm -rf "$tools"
# The standard library's bytecode: Debian's python3 has it, the official Python image does not.
python3 -m compileall -q -x '/(test|idlelib|lib2to3|ensurepip|site-packages|dist-packages)/' \
  "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
if [ -e /opt/locks/unused.py ]; then
  /opt/finetune/bin/python /opt/locks/unused.py
fi
