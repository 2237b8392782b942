"""What keeps a process from all that it does not need: limits, namespaces, filters of files and of system calls."""
