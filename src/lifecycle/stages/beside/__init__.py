"""What a stage holds beside the network that it trains: networks that are only asked, and what they have said."""
