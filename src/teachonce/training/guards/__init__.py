"""What is measured of a teacher before a training, and said where distillation would cost more than it gives."""
