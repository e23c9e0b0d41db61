"""Applications: the contract (`base`) and what an autoencoder is judged and used for, one file each."""
