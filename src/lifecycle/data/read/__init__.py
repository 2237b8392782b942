"""Where rows lie and how they are read: files, their bytes, their rows, and rows as records."""
