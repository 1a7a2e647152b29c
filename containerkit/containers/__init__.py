"""Containers with a life of their own: what they have said, and the terminal they are used from."""
