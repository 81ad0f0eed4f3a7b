"""Loading, saving and looking into models."""
