"""Layers: tar archives that are changes of a tree. Read, applied by descriptor, compared and written.

Nothing here knows of images, registries or the store: the parts take open descriptors and streams, and are useful
alone.
"""
