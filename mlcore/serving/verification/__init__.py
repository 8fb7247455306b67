"""The parts of `verify`: samples with their truth, golden cases, edge cases, the report."""
