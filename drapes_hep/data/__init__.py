"""What a file of events is, and public samples from the network."""
