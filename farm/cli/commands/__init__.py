"""The commands of the command line, one module per command or group.

Each module registers its commands and imports what is heavy only when one of them runs.
"""
