"""The C half: ``_ck`` (the extension) and ``ck-init`` (the helper program)."""
