"""Many slides: each done once, by whichever process comes to it, and what became of it in a ledger."""
