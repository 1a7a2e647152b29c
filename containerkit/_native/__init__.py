"""The C half: ``_ck`` (the extension) and ``ck-init`` (the helper program). Nothing above the kernel layer imports this."""
