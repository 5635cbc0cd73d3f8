"""The dispatcher's state machine and the ledger: pure functions and frozen values."""
