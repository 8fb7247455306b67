"""The quickstart: from a raw data set to predictions on pictures, one command."""
