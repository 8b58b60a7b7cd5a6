"""Makes one rank of a real training fail: put this folder on PYTHONPATH and say how in FAULT, at the second step.

raise: the step raises. kill: the process is killed as the kernel would. hang: it never comes back. stop, at the first
step: the launcher asks all ranks to stop.
"""

import os
import sys

if (
    os.environ.get("FAULT")
    and os.environ.get("RANK") == "1"
    and "finetune_runner.training.worker" in " ".join(sys.orig_argv)
):
    import importlib.abc
    import importlib.util
    import signal
    import threading

    class _Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name != "finetune_runner.training.trainer":
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                step = module.AdapterTrainer.step
                seen = []

                def faulty(self, *arguments):
                    seen.append(1)
                    fault = os.environ["FAULT"]
                    if fault == "stop":
                        open(os.path.join(os.environ["FINETUNE_RANKS_FOLDER"], "stop"), "w").close()
                    elif len(seen) == 2:
                        if fault == "kill":
                            os.kill(os.getpid(), signal.SIGKILL)
                        if fault == "hang":
                            threading.Event().wait()
                        raise OSError(28, "No space left on device", "/scratch/x")
                    return step(self, *arguments)

                module.AdapterTrainer.step = faulty

            spec.loader.exec_module = exec_module
            return spec

    sys.meta_path.insert(0, _Finder())
