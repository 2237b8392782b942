"""Jobs: one function a `stage=`, run without a Trainer."""
