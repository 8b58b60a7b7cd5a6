"""Makes one rank of a real training fail: put this folder on PYTHONPATH and say how in FAULT, at the second step.

raise: the step raises. kill: the process is killed as the kernel would. kill-torchrun: the process that started it is.
hang: it never comes back. stop, at the first
step: the launcher asks all ranks to stop. stop-evaluation: it does so in the first batch of the first evaluation after
a step, and every evaluation counts as slow.
"""

import os
import sys

fault = os.environ.get("FAULT")
rank = os.environ.get("RANK")

if fault and rank and "finetune_runner.training.worker" in " ".join(sys.orig_argv):
    import importlib.abc
    import importlib.util
    import signal
    import threading

    def _ask_to_stop():
        open(os.path.join(os.environ["FINETUNE_RANKS_FOLDER"], "stop"), "w").close()

    def _break_step(module):
        step = module.AdapterTrainer.step
        seen = []

        def faulty(self, *arguments):
            seen.append(1)
            if fault == "stop":
                _ask_to_stop()
            elif len(seen) == 2:
                if fault == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if fault == "kill-torchrun":
                    os.kill(os.getppid(), signal.SIGKILL)
                if fault in ("hang", "kill-torchrun"):
                    threading.Event().wait()
                raise OSError(28, "No space left on device", "/scratch/x")
            return step(self, *arguments)

        module.AdapterTrainer.step = faulty

    def _stop_evaluation(module):
        module.SLOW_EVALUATION_S = -1.0
        goes_on = module.goes_on

        def asked(session):
            if rank == "1" and session.state.step > 0:
                _ask_to_stop()
            goes_on(session)

        module.goes_on = asked

    if fault == "stop-evaluation":
        _changes = {"finetune_runner.training.stopping": _stop_evaluation}
    elif rank == "1":
        _changes = {"finetune_runner.training.trainer": _break_step}
    else:
        _changes = {}

    class _Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name not in _changes:
                return None
            change = _changes.pop(name)
            spec = importlib.util.find_spec(name)
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                change(module)

            spec.loader.exec_module = exec_module
            return spec

    sys.meta_path.insert(0, _Finder())
