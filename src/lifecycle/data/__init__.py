"""Sources -> records -> views -> mixture -> packing -> batches."""
