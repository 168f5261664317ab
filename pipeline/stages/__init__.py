"""The stages: plain callables on a batch. They know neither Ray nor a network library."""
