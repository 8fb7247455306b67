"""Kubeflow: launch a job, deploy an exported version, try a TFJob on one machine. No TensorFlow here."""
