"""`python -m finetune_runner STAGE --task FILE`."""

import sys

from finetune_runner.main import main

sys.exit(main())
