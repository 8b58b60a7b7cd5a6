"""A real node on a plain Linux machine: no virtual machine, no Docker, no registry.

``NodeCluster`` is the control plane with nodes; ``cluster`` (the whole), ``node`` (its programs), ``machine``
(namespaces), ``cgroups``, ``network``, ``slots`` (what belongs to whom, and the sweep after a crash), ``dns``, ``config``
(files), ``requirements`` (why not here). ``init.py`` and ``enter.py`` run inside, alone.
"""
