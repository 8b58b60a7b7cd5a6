"""Join control groups, then become another program: `enter.py FILE:FILE... PROGRAM ARGUMENT...`.

Runs alone (`python -I`), before the program: a process can only put itself into a group ahead of its first instruction.
"""

import os
import sys

for join in sys.argv[1].split(os.pathsep):
    with open(join, "w") as group:
        group.write("0")  # the writing process
os.execvp(sys.argv[2], sys.argv[2:])
