"""Measuring on a device that is reached over TVM's RPC: what it is, its kernels, whole networks.

Whatever connects runs in a process of its own: a connection may hang, and compilers change the process that imports
them.
"""
