"""``teachonce plan``: bytes, hours, distortion and break-even of an extraction, measured on a sample."""
