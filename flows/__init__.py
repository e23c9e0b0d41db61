"""Flows: when, where and with what effects the library's work is done. The home of Prefect; nothing imports from here."""
