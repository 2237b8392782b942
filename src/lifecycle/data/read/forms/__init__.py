"""What a row of each form becomes: one function a format, listed in `formats.py`."""
