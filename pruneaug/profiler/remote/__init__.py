"""Measuring over TVM's RPC: what a device is, its kernels, whole networks; layers on the GPU of another machine.

Whatever connects runs in a process of its own: a connection may hang, and compilers change the process that imports
them.
"""
