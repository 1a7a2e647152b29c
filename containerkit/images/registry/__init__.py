"""The client of image registries (OCI distribution-spec): transport, credentials, and the calls."""
