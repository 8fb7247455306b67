"""Kubeflow: launch a TFJob, deploy an InferenceService, try a TFJob on one machine; no TensorFlow."""
