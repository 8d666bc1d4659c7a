"""Reference networks and how they are trained: ``digits``."""
