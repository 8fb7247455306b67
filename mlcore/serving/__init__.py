"""Serving: versions on disk, model server, clients, verification."""
