"""The tables. Each entry of MIGRATIONS leads from one version to the next; an entry that was released never changes."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # Content as it was received, in blobs/ALGORITHM/HEX. With a lease: not yet on the device (see storage/).
        """CREATE TABLE blobs (
            digest TEXT PRIMARY KEY, size INTEGER NOT NULL, lease TEXT, added REAL NOT NULL
        ) WITHOUT ROWID""",
        # Unpacked trees, in layers/NAME. key: the diff_id, or the chain id of a layer that depends on those below it.
        """CREATE TABLE layers (
            key TEXT PRIMARY KEY, diff_id TEXT NOT NULL, driver TEXT NOT NULL, name TEXT NOT NULL UNIQUE,
            size INTEGER NOT NULL, inodes INTEGER NOT NULL, lease TEXT, added REAL NOT NULL
        ) WITHOUT ROWID""",
        # id: the digest of the configuration. serial: another one when the same image comes again.
        """CREATE TABLE images (
            serial INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, config BLOB NOT NULL,
            created REAL NOT NULL, added REAL NOT NULL
        )""",
        """CREATE TABLE manifests (
            digest TEXT PRIMARY KEY, image TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
            media_type TEXT NOT NULL, raw BLOB NOT NULL, added REAL NOT NULL
        ) WITHOUT ROWID""",
        "CREATE INDEX manifests_by_image ON manifests (image)",
        """CREATE TABLE manifest_blobs (
            manifest TEXT NOT NULL REFERENCES manifests (digest) ON DELETE CASCADE, position INTEGER NOT NULL,
            digest TEXT NOT NULL REFERENCES blobs (digest), PRIMARY KEY (manifest, position)
        ) WITHOUT ROWID""",
        "CREATE INDEX manifest_blobs_by_digest ON manifest_blobs (digest)",
        """CREATE TABLE image_layers (
            image TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE, position INTEGER NOT NULL,
            layer TEXT NOT NULL REFERENCES layers (key), PRIMARY KEY (image, position)
        ) WITHOUT ROWID""",
        "CREATE INDEX image_layers_by_layer ON image_layers (layer)",
        # What people call an image: repository:tag, or repository@digest when they asked for that.
        """CREATE TABLE names (
            name TEXT PRIMARY KEY, manifest TEXT NOT NULL REFERENCES manifests (digest) ON DELETE CASCADE,
            tagged REAL NOT NULL
        ) WITHOUT ROWID""",
        "CREATE INDEX names_by_manifest ON names (manifest)",
        # By which digests a registry knows an image: its manifest's, and that of the index that led to it.
        """CREATE TABLE repository_digests (
            repository TEXT NOT NULL, digest TEXT NOT NULL,
            manifest TEXT NOT NULL REFERENCES manifests (digest) ON DELETE CASCADE, PRIMARY KEY (repository, digest)
        ) WITHOUT ROWID""",
        "CREATE INDEX repository_digests_by_manifest ON repository_digests (manifest)",
        # An operation under way, alive while its file in leases/ is locked, and what it needs.
        "CREATE TABLE leases (id TEXT PRIMARY KEY, pid INTEGER NOT NULL, taken REAL NOT NULL) WITHOUT ROWID",
        """CREATE TABLE lease_items (
            lease TEXT NOT NULL REFERENCES leases (id) ON DELETE CASCADE, kind TEXT NOT NULL, key TEXT NOT NULL,
            PRIMARY KEY (lease, kind, key)
        ) WITHOUT ROWID""",
        "CREATE INDEX lease_items_by_key ON lease_items (kind, key)",
    ),
    (
        # spec: ContainerSpec as JSON. run: what the latest start has made outside the store, as JSON.
        # state: "created" (a row and a directory), "started" (the lock in its directory tells whether it still runs),
        # "removing". image: kept while the container is there.
        """CREATE TABLE containers (
            id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, image TEXT NOT NULL REFERENCES images (id),
            spec TEXT NOT NULL, state TEXT NOT NULL, run TEXT, created REAL NOT NULL
        ) WITHOUT ROWID""",
        "CREATE INDEX containers_by_image ON containers (image)",
        # Directories in volumes/NAME. copied: whether the image's content at a mount point has been put into it.
        """CREATE TABLE volumes (
            name TEXT PRIMARY KEY, anonymous INTEGER NOT NULL, labels TEXT NOT NULL, options TEXT NOT NULL,
            copied INTEGER NOT NULL, created REAL NOT NULL
        ) WITHOUT ROWID""",
        """CREATE TABLE volume_uses (
            container TEXT NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
            volume TEXT NOT NULL REFERENCES volumes (name), destination TEXT NOT NULL, read_only INTEGER NOT NULL,
            PRIMARY KEY (container, destination)
        ) WITHOUT ROWID""",
        "CREATE INDEX volume_uses_by_volume ON volume_uses (volume)",
    ),
)
