"""The bytes of files, local or remote, from any offset on."""
