"""Steps that take a vision model from raw data to a served version."""

__version__ = "0.1.0"
