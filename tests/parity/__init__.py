"""Golden parity tests."""
