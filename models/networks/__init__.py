"""The networks, in torch. Only training, the export and the torch engine import them."""
