"""Labels that differ between data and store, or between equal images of a store."""
