"""The stages: plain callables on a batch, without Ray and without a network library."""
