"""Data: what a sample is (`base`) and the sets that installed packages carry, one file each."""
