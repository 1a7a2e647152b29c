"""Volumes: directories with a name, which containers share and which outlive them.

A volume is ``STORE/volumes/NAME/d``, and a row. The row counts: a directory without one is what a killed program has
left, and :func:`sweep.sweep` removes it. What is in a volume was written by strangers; it is only ever worked on by
descriptor (:mod:`..kernel.tree`, :mod:`..layers.walk`), and no mount is entered.
"""
