"""Kubeflow: launch a job, deploy an InferenceService, try a TFJob on one machine."""
