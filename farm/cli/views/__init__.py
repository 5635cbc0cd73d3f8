"""How results and progress look in a terminal. Owns layout; computes and decides nothing."""
