"""Files, folders, locks and processes of the machine; derived seeds."""
