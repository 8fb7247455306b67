"""Training on a cluster: who its members are, and how each of them lives and ends.

`config`, `ranks`, `peers` and `status` know nothing of TensorFlow; `strategy`, `server`, `coordinator`, `team` do.
"""
