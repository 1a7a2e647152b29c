"""What a store is made of: a directory of ours, a database that says what is in it, blobs, layers and leases.

Every change goes the same way: write to ``ingest/`` or ``staging/``, rename into place, and only then a row. Rows are
the truth. A file without a row is a leftover, which :mod:`.sweep` removes; a row without its file is damage.

A row that names a lease is *pending*: its content is complete, but not yet written to the device. It counts as long as
its lease lives, and becomes final with the image that uses it, after one syncfs(2) for all of them. So a power cut
leaves no final row whose content is torn, and a pull syncs once.
"""
