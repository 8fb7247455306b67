"""A TFJob on one machine: what the training operator and the kubelet do, on the local container engine."""
