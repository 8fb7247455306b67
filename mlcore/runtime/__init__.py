"""What every step needs and that knows nothing of machine learning."""
