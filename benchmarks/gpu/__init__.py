"""What only a GPU can tell: checks that must hold there, and measurements, in one table."""
