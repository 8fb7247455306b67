"""The model server: versions of a SavedModel behind TensorFlow Serving's and the Open Inference protocols."""
