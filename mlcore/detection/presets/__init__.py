"""Presets of `mlcore train`: one YAML file each, an experiment of official.vision and what it changes in it."""
