"""What a store is made of: a directory that is marked as ours, one database, content by digest, leases and locks."""
