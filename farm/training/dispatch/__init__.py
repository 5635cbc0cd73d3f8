"""Which lane trains which job: the dispatcher, its indexes and queues, and the ledger."""
