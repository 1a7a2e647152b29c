"""How unpacked layers are kept on disk, and become the root of a container."""
