"""Documents of the sources as logical streams of packed rows, resumable after every step."""
