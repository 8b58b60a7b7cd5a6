#!/bin/sh
# Build the wheel of what is in /src and install it into /opt/code; runs in the build of an image (Dockerfile):
# code-in-image.sh COMMAND, where COMMAND is the one of the project's commands that the image keeps.
set -eu
cd /src
/builder/bin/python -m hatchling build --target wheel --directory /wheels
PYC_INVALIDATION_MODE=UNCHECKED_HASH /builder/bin/uv pip install --quiet --no-cache --offline --no-deps --compile-bytecode \
  --python /opt/finetune/bin/python --target /opt/code /wheels/*.whl
find /opt/code/bin -type f ! -name "$1" -delete
rm -f /opt/code/.lock
