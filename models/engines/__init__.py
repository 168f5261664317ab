"""Engines run a network on batches of one shape: OpenVINO on a CPU, torch on any device."""
