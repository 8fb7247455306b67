"""The MNIST classifier: a small dense network, from arrays to a served version."""
