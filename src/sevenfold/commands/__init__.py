"""What the command line can do, by the noun that a command is about: arguments in, a call of the library, lines out."""
