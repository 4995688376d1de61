"""LFPT5: the method, and the pseudo examples that it rehearses."""
