"""What a stage holds beside the network that it trains: frozen networks, and what they have given."""
