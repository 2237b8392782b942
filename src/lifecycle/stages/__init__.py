"""Stages: one LightningModule a file, final classes over one abstract `Stage`."""
