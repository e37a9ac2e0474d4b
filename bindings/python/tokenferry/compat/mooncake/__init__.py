"""Mooncake's expert-parallel buffer."""
