"""A real node on a plain Linux machine: no virtual machine, no Docker, no registry.

``cluster`` is the whole: a control plane with nodes. ``node`` are a node's programs and ``config`` their files;
``machine`` is where they run, made of ``cgroups`` and ``network``; ``dns`` gives the cluster its names; ``slots`` says
what belongs to whom and sweeps after a crash; ``requirements`` says why a machine cannot have a node. ``init.py`` and
``enter.py`` run inside, alone.
"""
