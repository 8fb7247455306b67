"""Object detection on tf-models-official: configuration, input, train, evaluate, export, predict."""
