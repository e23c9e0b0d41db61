"""sevenfold: does an autoencoder help on this data? Seven answers with numbers, and batch jobs for the winners."""

__version__ = "0.1.0"
