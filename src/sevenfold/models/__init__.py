"""Autoencoders: the contract (`base`) and the variants, one file each."""
