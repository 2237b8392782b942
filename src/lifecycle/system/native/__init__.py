"""C that is compiled on the machine it runs on: the library, and what its sources share."""
