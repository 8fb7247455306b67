"""Data sets: downloads, archives, annotations, records. Nothing here imports TensorFlow."""
