"""`python -m finetune_runner STAGE --task FILE`."""

import os
import sys

from finetune_runner.allocator import prefer_expandable_segments
from finetune_runner.main import main

prefer_expandable_segments(os.environ)
sys.exit(main())
