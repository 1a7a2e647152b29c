"""Images: their names, what registries say of them, and what they say of themselves. Values only so far."""
