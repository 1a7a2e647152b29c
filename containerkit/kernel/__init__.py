"""The kernel layer: typed functions over descriptors, feature probes, and errno turned into errors.

Everything here takes and returns integers, bytes and :class:`~containerkit.kernel.fd.Fd`; nothing here knows what a
container is. Modules: ``fd`` (the handle), ``calls`` (system calls), ``nsfs`` (namespace files), ``helper`` (the sealed
copy of ck-init), ``probe`` (what this machine can do).
"""
