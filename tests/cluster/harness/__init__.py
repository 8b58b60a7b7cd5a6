"""A real control plane, a real S3 server and stand-ins for the kubelet, for the cluster tests.

Nothing here is shipped. Every part starts on free ports of 127.0.0.1, dies with the test process and
is described in the file of its name: ``binaries`` (build), ``controlplane``, ``s3``, ``kubelet``,
``operator_process``, ``waiting``.
"""
