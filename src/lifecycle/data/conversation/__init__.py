"""A conversation as token ids by a chat template, with the tokens that the assistant writes itself."""
