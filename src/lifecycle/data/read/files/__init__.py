"""Which files a source stands for, and what is in them by name."""
